"""Runs a training job in a process of its own and shows how far it is."""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stillhouse.console import output
from stillhouse.console.context import Context
from stillhouse.schemas.errors import ExitCode, GateError, PermanentError, RetryableError, StillhouseError, UnreachableError, UsageError

Event = dict[str, Any]
ERRORS: dict[int, type[StillhouseError]] = {kind.exit_code: kind for kind in (UsageError, UnreachableError, GateError)}


def command(loaded: Context, overrides: Mapping[str, object], options: Sequence[str]) -> list[str]:
    """The trainer's command line for a job."""
    settings = [f"--set={key}={value}" for key, value in overrides.items() if value is not None]
    config = ["--config", str(loaded.config.path)] if loaded.config.path else []
    servers = ["--bootstrap-servers", loaded.kafka.bootstrap_servers] if loaded.has_broker else []
    head = [sys.executable, "-m", "stillhouse.trainer", "run", "--state", str(loaded.state)]
    return [*head, *config, *servers, *settings, *options]


async def job(
    loaded: Context, overrides: Mapping[str, object], options: Sequence[str], on_event: Callable[[Event], None] = lambda event: None
) -> Event:
    """Run one window to its end; its result.

    Raises:
        StillhouseError: the trainer could not run the window, with its own words.
    """
    log = loaded.config.state_dir("logs") / "trainer.log"
    result: Event | None = None
    problem: Event = {}
    with log.open("ab") as errors:
        child = await asyncio.create_subprocess_exec(
            *command(loaded, overrides, options),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=errors,
            limit=2**24, env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        )  # fmt: skip
        try:
            assert child.stdout is not None
            async for line in child.stdout:
                event = json.loads(line)
                if event["event"] == "result":
                    result = event
                elif event["event"] == "error":
                    problem = event
                else:
                    on_event(event)
            code = await child.wait()
        except BaseException:
            if child.returncode is None:
                child.terminate()
            await child.communicate()  # to the end of its output: a pipe that is not read to its end stays open
            raise
    if result is not None and code in (ExitCode.OK, ExitCode.GATE_SAID_NO):
        return result
    kind = ERRORS.get(code, RetryableError if problem.get("retryable") else PermanentError)
    what = problem.get("what") or f"the trainer ended with exit code {code}"
    raise kind(what, where=problem.get("where") or str(log), fix=problem.get("fix") or "See its log; run the window again to go on.")


def run_job(loaded: Context, overrides: Mapping[str, object], options: Sequence[str], *, quiet: bool) -> Event:
    """`job` for the command line, with a progress bar. Raises as `job`."""
    with output.progress("claiming", quiet=quiet) as tick:

        def show(event: Event) -> None:
            tick(int(event.get("step", 0)), describe(event), event.get("steps"))

        return asyncio.run(job(loaded, overrides, options, show))


def describe(event: Event) -> str:
    """What happened, in a few words."""
    if event["event"] == "train" and event.get("loss") is not None:
        return f"{event['kind']} {event['step']}/{event['steps']}, loss {event['loss']:.3f}"
    if event["event"] == "stage":
        return f"curating: {event['stage']} keeps {event['kept']}"
    if event["event"] == "evaluate":
        return f"validating: {event['done']}/{event['total']}, {event['succeeded']} solved"
    return str(event.get("state") or event.get("kind") or event["event"])
