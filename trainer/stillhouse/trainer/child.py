"""A training job in a process of its own: its memory is returned, and torch stays out of whoever started it."""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from stillhouse.schemas.errors import ExitCode, GateError, PermanentError, RetryableError, StillhouseError, UnreachableError, UsageError

Event = dict[str, Any]
OnEvent = Callable[[Event], None]
ERRORS: dict[int, type[StillhouseError]] = {kind.exit_code: kind for kind in (UsageError, UnreachableError, GateError)}
STOP_S = 15.0


def command(state: Path, config: Path | None, servers: str | None, options: Sequence[str] = ()) -> list[str]:
    """The command line of a job: the lineage's open window, or the next one.

    Args:
        state: the state folder.
        config: the settings file, if there is one.
        servers: the broker's address; None where there is none.
        options: of `python -m stillhouse.trainer run`.
    """
    head = [sys.executable, "-m", "stillhouse.trainer", "run", "--state", str(state)]
    return [*head, *(["--config", str(config)] if config else []), *(["--bootstrap-servers", servers] if servers else []), *options]


async def run_job(argv: Sequence[str], log: Path, on_event: OnEvent = lambda event: None, *, nice: int = 0) -> Event:
    """Run one job to its end; its result. A cancelled one is told to stop, and killed when it does not.

    Args:
        argv: see `command`.
        log: takes its standard error.
        on_event: told its progress.
        nice: how far it stands behind other processes.

    Raises:
        RetryableError: it says that it may work later; or it died without a word, as of too little memory.
        StillhouseError: it could not run the window, with its own words.
    """
    last: Event = {}
    with log.open("ab") as errors:
        child = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=errors,
            limit=2**24,
        )  # fmt: skip
        try:
            if nice:
                with suppress(ProcessLookupError):  # it has ended already: its words say how
                    os.setpriority(os.PRIO_PROCESS, child.pid, nice)
            assert child.stdout is not None
            async for line in child.stdout:
                event = json.loads(line)
                if event["event"] in ("result", "error"):
                    last = event
                else:
                    on_event(event)
            code = await child.wait()
        except BaseException:
            await _stop(child)
            raise
    if last.get("event") == "result" and code in (ExitCode.OK, ExitCode.GATE_SAID_NO):
        return last
    raise _problem(last, code, log)


def _problem(said: Event, code: int, log: Path) -> StillhouseError:
    if not said:
        ended = f"by signal {-code}" if code < 0 else f"with exit code {code} and no word"
        return RetryableError(f"the training job ended {ended}", where=str(log), fix="See its log.")
    kind = ERRORS.get(code, RetryableError if said.get("retryable") else PermanentError)
    return kind(str(said.get("what")), where=str(said.get("where")), fix=str(said.get("fix")))


async def _stop(child: asyncio.subprocess.Process) -> None:
    """SIGTERM, and SIGKILL when it has not ended in time. Its output is read to the end: an unread pipe stays open."""
    if child.returncode is None:
        with suppress(ProcessLookupError):
            child.terminate()
    try:
        await asyncio.wait_for(child.communicate(), STOP_S)
    except TimeoutError:
        with suppress(ProcessLookupError):
            child.kill()
        await child.communicate()
