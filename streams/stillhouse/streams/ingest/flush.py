"""Steps 4 to 7 in their order: store, facts, commit. One flush at a time; what is away is waited for, and nothing is lost by it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from stillhouse.schemas.errors import RetryableError
from stillhouse.streams.ingest.open import Entry, OpenTrajectories
from stillhouse.streams.ingest.outbox import Outbox
from stillhouse.streams.ingest.rows import facts_of
from stillhouse.streams.ingest.sink import Sink, Stored, units_of
from stillhouse.streams.ingest.slots import Slots
from stillhouse.streams.ingest.steps import Reached
from stillhouse.streams.instruments import Instruments
from stillhouse.streams.logs import logger
from stillhouse.streams.settings import IngestSettings

log = logger(__name__)

T = TypeVar("T")


class Waiter:
    """Repeats what a retryable error interrupted; the worker is paused meanwhile and goes on polling.

    Args:
        wait: seconds between attempts, at least; an error may ask for more.
        pause: called when it begins to wait.
        resume: called when it works again.
        instruments: counts attempts.
    """

    def __init__(self, wait: float, pause: Callable[[], None], resume: Callable[[], None], instruments: Instruments) -> None:
        self._wait, self._pause, self._resume, self._instruments = wait, pause, resume, instruments
        self._waiting = 0

    @property
    def waiting(self) -> bool:
        """Whether something is away."""
        return self._waiting > 0

    async def until_done(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of the first attempt that no retryable error ends."""
        failed = False
        try:
            while True:
                try:
                    return await attempt()
                except RetryableError as error:
                    if not failed:
                        failed = True
                        self._begin()
                    self._instruments.count("stillhouse_ingest_store_errors_total")
                    log.warning("waiting for what is away", error=str(error))
                    await asyncio.sleep(max(self._wait, error.retry_after))
        finally:
            if failed:
                self._end()

    def _begin(self) -> None:
        self._waiting += 1
        if self._waiting == 1:
            self._instruments.set("stillhouse_ingest_paused", 1)
            self._pause()

    def _end(self) -> None:
        self._waiting -= 1
        if self._waiting == 0:
            self._instruments.set("stillhouse_ingest_paused", 0)
            self._resume()


class Flusher:
    """Flushes what is ready.

    Args:
        opened: the unflushed events.
        sink: the store.
        outbox: for the facts.
        waiter: for what is away.
        slots: how many workers may flush at once.
        commit: step 7, and the watermarks.
        settings: the section `[ingest]`.
        instruments: metrics.
        clock: seconds, monotonic.
        reached: the hook at `facts` and `commit`.
    """

    def __init__(
        self,
        opened: OpenTrajectories,
        sink: Sink,
        outbox: Outbox,
        waiter: Waiter,
        slots: Slots,
        commit: Callable[[], Awaitable[None]],
        settings: IngestSettings,
        instruments: Instruments,
        clock: Callable[[], float],
        reached: Reached,
    ) -> None:
        self._open, self._sink, self._outbox, self._waiter, self._commit = opened, sink, outbox, waiter, commit
        self._settings, self._instruments, self._clock, self._reached = settings, instruments, clock, reached
        self._slots = slots
        self._lock = asyncio.Lock()
        self.recent: list[float] = []

    async def flush(self, cause: str) -> None:
        """Flush some of what is ready.

        Raises:
            PermanentError: the store refuses even the row that says what was refused.
        """
        async with self._lock:
            async with self._slots.one(self._waiter.until_done):
                entries = self._open.take(self._settings.flush_rows, self._settings.flush_bytes)
                if entries:
                    await self._steps(entries, cause)

    async def drain(self, cause: str) -> None:
        """Flush all that is ready. Raises as `flush`."""
        async with self._lock:
            async with self._slots.one(self._waiter.until_done):
                while entries := self._open.take(self._settings.flush_rows, self._settings.flush_bytes):
                    await self._steps(entries, cause)

    async def _steps(self, entries: list[Entry], cause: str) -> None:
        started = self._clock()
        units = units_of(entries)
        stored = await self._waiter.until_done(lambda: asyncio.to_thread(self._sink.write, units))
        facts = [facts_of(row) for row in stored.rows]
        await self._waiter.until_done(lambda: self._outbox.facts(facts))
        self._reached("facts")
        self._open.done(entries)
        await self._waiter.until_done(self._commit)
        self._reached("commit")
        self._count(stored, cause, self._clock() - started)

    def _count(self, stored: Stored, cause: str, seconds: float) -> None:
        self.recent = [*self.recent[-99:], seconds]
        self._instruments.observe("stillhouse_ingest_flush_seconds", seconds)
        self._instruments.count("stillhouse_ingest_flushes_total", cause=cause)
        self._instruments.count("stillhouse_ingest_unchanged_total", len(stored.unchanged))
        self._instruments.count("stillhouse_ingest_conflicts_total", stored.conflicts)
        for row in stored.written:
            self._instruments.count("stillhouse_ingest_rows_total", status=row["status"])
            if not row["valid_tools"]:
                self._instruments.count("stillhouse_ingest_flagged_total", reason="invalid_tools")
            if row["family"] is None:
                self._instruments.count("stillhouse_ingest_flagged_total", reason="no_family")
