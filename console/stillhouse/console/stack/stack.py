"""`Stack`: starts parts when those before them are ready, restarts what ends, stops in reverse order. What `up`, `demo` and tests use."""

import asyncio
import fcntl
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from stillhouse.console.stack import record as records
from stillhouse.console.stack.local import parts_of
from stillhouse.console.stack.parts import Part, Ready, StackSettings
from stillhouse.console.stack.process import Process, create_time, end, same_process
from stillhouse.schemas.errors import PermanentError

MAX_BACKOFF = 30.0
QUICK_FAILURES = 5  # so many ends in a row, each soon after the start: something is wrong that another try won't mend
ORPHAN_SECONDS = 30.0
STEADY_SECONDS = 10.0  # a part that has run this long counts as well again


@dataclass(frozen=True)
class StackEvent:
    """Something a person who watches wants to know: a part is starting, ready, ended, restarted or stopped."""

    part: str
    what: str
    detail: str = ""


class Stack:
    """All processes of one state folder.

    Args:
        state: the state folder; one stack at a time, held by a lock.
        settings: addresses and what to run with.
        parts: the parts to run, each after those that it waits for; by default all of the local stack.
        on_event: told what happens, for the terminal or a log.
        sleep: waits between restarts.
    """

    def __init__(
        self,
        state: Path,
        settings: StackSettings | None = None,
        parts: tuple[Part, ...] | None = None,
        on_event: Callable[[StackEvent], None] = lambda event: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.state = state
        self.settings = settings or StackSettings()
        self.parts = parts_of(state, self.settings) if parts is None else parts
        self._on_event, self._sleep = on_event, sleep
        self._processes: dict[str, Process] = {}
        self._ready: dict[str, Ready] = {}
        self._restarts: dict[str, int] = {}
        self._watchers: list[asyncio.Task[None]] = []
        self._failed: asyncio.Future[PermanentError] | None = None
        self._lock: TextIO | None = None

    async def __aenter__(self) -> "Stack":
        """Start everything; on failure what was started is stopped again."""
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Stop everything."""
        await self.stop()

    async def start(self) -> records.StackRecord:
        """Start the parts and write `run/stack.json` when all are ready.

        Raises:
            PermanentError: another stack holds the state folder, or a part did not start.
        """
        self._take_lock()
        self._failed = asyncio.get_running_loop().create_future()
        try:
            await self._end_orphans()
            await self._start_all()
            self._watchers = [asyncio.create_task(self._watch(part), name=part.name) for part in self.parts]
            return self._write_record()
        except BaseException:
            await self.stop()
            raise

    async def _start_all(self) -> None:
        """Every part as soon as those that it waits for are ready."""
        up = {part.name: asyncio.Event() for part in self.parts}

        async def one(part: Part) -> None:
            for name in part.after:
                await up[name].wait()
            await self._start_part(part, port=0)
            up[part.name].set()

        try:
            async with asyncio.TaskGroup() as group:
                for part in self.parts:
                    group.create_task(one(part), name=part.name)
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from several

    async def wait(self) -> None:
        """Return never, unless a part can't be kept up.

        Raises:
            PermanentError: a part ended again and again.
        """
        assert self._failed is not None, "start first"
        raise await asyncio.shield(self._failed)

    async def stop(self) -> None:
        """Stop the parts in reverse order and give the state folder free."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        self._watchers = []
        for part in reversed(self.parts):
            if process := self._processes.pop(part.name, None):
                await process.stop()
                self._on_event(StackEvent(part.name, "stopped"))
        if self._lock:
            records.remove(self.state)
            self._lock.close()
            self._lock = None

    @property
    def record(self) -> records.StackRecord:
        """Where everything is now."""
        metrics = {name: str(ready["metrics"]) for name, ready in self._ready.items() if ready.get("metrics")}
        if admin := self.announced("gateway", "admin"):
            metrics["gateway"] = f"{admin}/metrics"
        return records.StackRecord(
            bootstrap_servers=self.settings.bootstrap_servers or str(self.announced("broker", "bootstrap_servers") or ""),
            supervisor=records.ProcessId(pid=os.getpid(), started=create_time(os.getpid())),
            pids={p.name: self._id(p.name) for p in self.parts if p.name in self._processes},
            metrics=metrics,
            gateway=self.announced("gateway", "url"),
            admin=self.announced("gateway", "admin"),
            student=self.announced("student", "url"),
            page=self.announced("console", "url"),
            model=str(self.settings.model) if self.settings.model else None,
            restarts=dict(self._restarts),
        )

    def _id(self, part: str) -> records.ProcessId:
        process = self._processes[part]
        return records.ProcessId(pid=process.pid, started=process.started)

    def announced(self, part: str, field: str) -> str | None:
        """One field of what a part said when it was ready; None without that part or field."""
        value: Any = self._ready.get(part, {}).get(field)
        return str(value) if value is not None else None

    def _take_lock(self) -> None:
        folder = self.state / "run"
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "stack.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise PermanentError("a stack already runs here", where=str(self.state), fix="Stop it with: stillhouse down") from None
        self._lock = lock

    async def _end_orphans(self) -> None:
        """Parts that outlived a killed supervisor are ours (same id, same start time): end them before they get company."""
        old = records.read(self.state)
        for name, known in reversed((old.pids if old else {}).items()):
            if process := same_process(known.pid, known.started):
                self._on_event(StackEvent(name, "ending", "left by a killed supervisor"))
                await asyncio.to_thread(end, process, ORPHAN_SECONDS)

    async def _start_part(self, part: Part, port: int) -> None:
        self._on_event(StackEvent(part.name, "starting"))
        await asyncio.to_thread(part.prepare, self._ready)
        log = self.state / "logs" / f"{part.name}.log"
        process = Process(part.name, part.command(self._ready, port), log, self.settings.environment)
        self._processes[part.name] = process
        self._ready[part.name] = await process.start(part.ready_timeout)
        self._on_event(StackEvent(part.name, "ready", str(self._ready[part.name].get("url") or "")))

    def _write_record(self) -> records.StackRecord:
        record = self.record
        records.write(self.state, record)
        return record

    async def _watch(self, part: Part) -> None:
        """Start a part again whenever it ends, at its old port, waiting longer each time that it ends soon."""
        loop, failures = asyncio.get_running_loop(), 0
        while True:
            began = loop.time()
            code = await self._processes[part.name].wait()
            self._on_event(StackEvent(part.name, "ended", f"exit code {code}"))
            failures = 1 if loop.time() - began > STEADY_SECONDS else failures + 1
            failures = await self._restart(part, failures)
            if failures > QUICK_FAILURES:
                return
            self._restarts[part.name] = self._restarts.get(part.name, 0) + 1
            self._write_record()

    async def _restart(self, part: Part, failures: int) -> int:
        """Try until the part is ready; the number of failures in a row so far, over the limit when it was given up."""
        port, why = part.port_of(self._ready[part.name]), PermanentError(f"{part.name} ends again and again", where=f"logs/{part.name}.log")
        while failures <= QUICK_FAILURES:
            if failures > 1:
                await self._sleep(min(MAX_BACKOFF, 2.0 ** (failures - 2)))
            try:
                await self._start_part(part, port)
                return failures
            except PermanentError as error:
                failures, why = failures + 1, error
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(why)
        return failures
