"""One supervised process: started, announced, watched, stopped."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from stillhouse.schemas.errors import PermanentError

TAIL_BYTES = 2000
STOP_SECONDS = 20.0


class Process:
    """A child with a log of its own. It announces itself with one line of JSON on standard output."""

    def __init__(self, name: str, command: tuple[str, ...], log: Path, environment: Mapping[str, str]) -> None:
        self.name, self.command, self.log = name, command, log
        self._environment = {**os.environ, **environment}
        self._child: asyncio.subprocess.Process | None = None
        self._drain: asyncio.Task[None] | None = None
        self.started = 0.0

    @property
    def pid(self) -> int:
        """The process id; 0 before the start."""
        return self._child.pid if self._child else 0

    async def start(self, timeout: float) -> Mapping[str, Any]:
        """Start it and wait for its announcement.

        Raises:
            PermanentError: it ended, said something else, or said nothing in time; with the end of its log.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            # A session of its own: a Ctrl-C in the terminal reaches the supervisor only, which stops parts in order.
            self._child = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env=self._environment,
            )
        self.started = create_time(self._child.pid)
        assert self._child.stdout is not None
        try:
            line = await asyncio.wait_for(self._child.stdout.readline(), timeout)
            ready = json.loads(line)
        except TimeoutError:
            await self.stop()
            raise PermanentError(f"{self.name} did not get ready in {timeout:g} s", where=str(self.log), fix=self.tail()) from None
        except json.JSONDecodeError:
            await self.stop()
            raise PermanentError(f"{self.name} did not start", where=str(self.log), fix=self.tail()) from None
        except BaseException:  # whoever waited for it has been told to end
            await self.stop()
            raise
        self._drain = asyncio.create_task(self._drain_output())
        return dict(ready)

    async def _drain_output(self) -> None:
        assert self._child is not None and self._child.stdout is not None
        with self.log.open("ab") as log:
            while chunk := await self._child.stdout.read(65536):
                log.write(chunk)

    async def wait(self) -> int:
        """Wait until it and its output end; its exit code (negative: the signal)."""
        assert self._child is not None
        code = await self._child.wait()
        self._drain = self._drain or asyncio.create_task(self._drain_output())
        await asyncio.shield(self._drain)  # a pipe that is not read to its end stays open when the loop closes
        return code

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL when it has not ended in time."""
        if self._child is None:
            return
        if self._child.returncode is None:
            _signal(self._child, signal.SIGTERM)
        try:
            await asyncio.wait_for(self.wait(), STOP_SECONDS)
        except TimeoutError:
            _signal(self._child, signal.SIGKILL)
            await self.wait()

    def tail(self) -> str:
        """The last lines of its log."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
            return log.read().decode(errors="replace").strip()


def _signal(child: asyncio.subprocess.Process, number: signal.Signals) -> None:
    try:
        child.send_signal(number)
    except ProcessLookupError:
        return  # it ended between the look and the signal: what was wanted has happened


def create_time(pid: int) -> float:
    """When a process started, in seconds since the epoch; 0 when there is none (any more)."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return 0.0


def same_process(pid: int, started: float) -> psutil.Process | None:
    """The process with that id, unless the id has been given to another one since."""
    try:
        process = psutil.Process(pid)
        return process if abs(process.create_time() - started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def end(process: psutil.Process, seconds: float) -> bool:
    """SIGTERM a process that may not be our child, and wait until it is gone; False when it still runs after so many seconds.

    A zombie counts as gone: where nobody reaps it, nothing can be waited for.
    """
    started, deadline = process.create_time(), time.monotonic() + seconds
    process.terminate()
    while same_process(process.pid, started):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
