"""One ingest worker: the loop around the steps. Everything that decides is in the modules that it calls."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from stillhouse.schemas import codec
from stillhouse.schemas.errors import PermanentError, RetryableError
from stillhouse.schemas.facts import Watermark
from stillhouse.schemas.registry import Resolvers, TopicResolver
from stillhouse.schemas.topics import EVENTS
from stillhouse.sdk.kafka import KafkaSettings, schema_registry, topic_name
from stillhouse.sdk.store import Store
from stillhouse.streams.ingest.consumer import Batch, Member
from stillhouse.streams.ingest.decode import UNKNOWN_SCHEMA, Decoded, Decoder
from stillhouse.streams.ingest.flush import Flusher, Waiter
from stillhouse.streams.ingest.follow import Erasures, Follower
from stillhouse.streams.ingest.limits import RatioLimit
from stillhouse.streams.ingest.open import OpenTrajectories
from stillhouse.streams.ingest.outbox import Outbox
from stillhouse.streams.ingest.partitions import Partitions
from stillhouse.streams.ingest.records import UNATTRIBUTED, Record
from stillhouse.streams.ingest.sink import Sink
from stillhouse.streams.ingest.slots import Slots
from stillhouse.streams.ingest.slow import SlowLimits
from stillhouse.streams.ingest.status import Status
from stillhouse.streams.ingest.steps import Reached, unwatched
from stillhouse.streams.instruments import Instruments
from stillhouse.streams.logs import logger
from stillhouse.streams.settings import IngestSettings

log = logger(__name__)

T = TypeVar("T")

TICK_S = 1.0
POLL_S = 0.1
STOP_S = 2.0
"""How long what the loop is at may take when it is to stop; what it waits for then is left to the next start."""


CLOSE_S = 5.0
"""How long a client may take to disconnect: without a broker it may never do it."""


@dataclass(frozen=True)
class Clocks:
    """Time, injected. `monotonic` in seconds; `now` in microseconds since the epoch, for bookkeeping only."""

    monotonic: Callable[[], float] = time.monotonic
    now: Callable[[], int] = lambda: time.time_ns() // 1000


class Worker:
    """Reads its partitions until it is stopped.

    Args:
        kafka: the section `[kafka]`.
        settings: the section `[ingest]`.
        store: the store.
        ordinal: which worker this is on its machine.
        instruments: metrics.
        clocks: time.
        reached: the hook at each step.
        instance: which worker it is in the group, over all machines; by default the ordinal.
        slow: from which latency on requests count as slow; by default the settings say it for all.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        settings: IngestSettings,
        store: Store,
        ordinal: int,
        instruments: Instruments,
        clocks: Clocks = Clocks(),
        reached: Reached = unwatched,
        instance: str = "",
        slow: SlowLimits | None = None,
    ) -> None:
        self._settings, self._instruments, self._clocks, self._reached = settings, instruments, clocks, reached
        self._kafka, self._store = kafka, store
        self.topic = topic_name(kafka, EVENTS)
        self.erasures, self.schemas = Erasures(), TopicResolver()
        self._outbox = Outbox(kafka, instruments)
        self._partitions = Partitions()
        self._open = OpenTrajectories(settings.open_bytes, settings.source_open_bytes)
        self.member = Member(kafka, settings, self.topic, instance or ordinal, self._partitions, self._on_revoked, self._on_lost)
        registry = schema_registry(kafka)
        self._registry = registry is not None
        self.resolver = Resolvers([self.schemas] if registry is None else [self.schemas, registry])
        self._follower = Follower(kafka, self.erasures, self.schemas, self.resolver)
        self._decoder = Decoder(self.resolver, RatioLimit(settings.dlq_ratio, settings.dlq_minimum, settings.dlq_window), clocks.monotonic)
        self._waiter = Waiter(settings.retry_wait, self.member.pause, self.member.resume, instruments)
        sink = Sink(store, clocks.now, erased=self.erasures, slow=slow or SlowLimits(settings.slow_request_ms), reached=reached)
        name, workers = self.member.name, self.member.partition_count
        slots = Slots(store, name, ordinal, settings.flushes_at_once, settings.retry_wait, clocks.now, workers)
        self.flusher = Flusher(
            self._open, sink, self._outbox, self._waiter, slots, self._settle, settings, instruments, clocks.monotonic, reached
        )
        self.status = Status(
            self.member, self._partitions, self._open, self._waiter, instruments, clocks.monotonic, settings.max_poll_interval
        )
        self._kept: list[Batch] = []
        self._flushing: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._last_tick = float("-inf")

    async def start(self) -> None:
        """Read erasures and schemas whole, then join the group.

        Raises:
            UnreachableError: no broker answers.
            PermanentError: a topic is missing, or a table is not ours.
        """
        await self._follower.start()
        if self.topic not in await self._follower.topics():
            raise PermanentError(f"no topic {self.topic}", where=self._kafka.bootstrap_servers, fix="Run `stillhouse topics apply`.")
        await asyncio.to_thread(self._open_tables)
        await self._outbox.start()
        await self.member.start()

    def _open_tables(self) -> None:
        """Make or refuse the tables now: not in the first flush."""
        for name in ("trajectories", "transcripts", "leases"):
            self._store.table(name)

    def stop(self) -> None:
        """Ask the loop to end: it flushes what is complete and commits."""
        self._stopping.set()

    async def run(self, joined: Callable[[], None]) -> None:
        """Read, until `stop` is called.

        Args:
            joined: called once, when the group has given partitions for the first time.

        Raises:
            PermanentError: what a person must decide or mend.
        """
        loop, stopping = asyncio.create_task(self._loop(joined)), asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({loop, stopping}, return_when=asyncio.FIRST_COMPLETED)
            away = self._waiter.waiting
            if not loop.done():
                await asyncio.wait({loop}, timeout=0 if away else STOP_S)
            away = away or self._waiter.waiting
            if loop.done():
                loop.result()
        finally:  # nothing of a batch is in the books before all of it is
            loop.cancel()
            stopping.cancel()
            await asyncio.gather(loop, stopping, return_exceptions=True)
        if not away:  # else the log has what could not be handled or stored
            await self._drain("stop")

    async def _loop(self, joined: Callable[[], None]) -> None:
        told = False
        while not self._stopping.is_set():
            for batch in await self._fetch():
                await self._handle(batch)
            if self.member.joined and not told:
                told = True
                joined()
            await self._turn()

    async def close(self) -> None:
        """Disconnect from everything."""
        if self._flushing is not None:
            self._flushing.cancel()
            await asyncio.gather(self._flushing, return_exceptions=True)
        for part in (self.member, self._outbox, self._follower):
            await _stopped(part.stop())

    async def _fetch(self) -> list[Batch]:
        """Step 1, beginning with what came while this worker waited for something."""
        kept, self._kept = self._kept, []
        batches = kept or await self._waiter.until_done(lambda: self.member.records(POLL_S, self._settings.fetch_records))
        if batches:
            self._reached("fetch")
        return batches

    async def _handle(self, batch: Batch) -> None:
        """Steps 2 and 3 of one partition's records."""
        partition, records = batch
        decoded = await self._decode(records)
        self._reached("decode")
        if decoded.rejected:
            await self._patiently(lambda: self._outbox.dead_letters(decoded.rejected))
        if not self._partitions.current(partition) or partition.position > records[0].offset:
            return
        self._open.add(decoded.events, self._clocks.monotonic())
        partition.read(records[-1].offset + 1, records[-1].timestamp * 1000)
        self._reached("group")
        self.status.count(decoded)
        if UNATTRIBUTED in decoded.closed:
            self.member.stop_partition(partition.number)
            log.error(
                "partition stopped: a flood of undecodable records that name no source",
                partition=partition.number,
                fix="Find who writes without the header ce_source, then restart this worker.",
            )

    async def _decode(self, records: list[Record]) -> Decoded:
        async def attempt() -> Decoded:
            if self._registry and any(codec.schema_id_of(one.value or b"") is not None for one in records):
                await asyncio.to_thread(self._decoder.look_up, records)
            return self._decoder.batch(records)

        decoded = await self._patiently(attempt)
        if any(one.reason in UNKNOWN_SCHEMA for one in decoded.rejected):
            known = len(self.schemas)
            await self._patiently(self._follower.catch_up)
            if len(self.schemas) > known:
                return await self._patiently(attempt)
        return decoded

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of an attempt; what is away is waited for while the group sees that this worker lives."""
        try:
            return await attempt()
        except RetryableError:
            task = asyncio.ensure_future(self._waiter.until_done(attempt))
            try:
                await self._keep_polling(task)
            finally:
                task.cancel()  # it is done, or this worker stops
            return task.result()

    async def _turn(self) -> None:
        """What each turn of the loop looks at besides records."""
        now = self._clocks.monotonic()
        self._open.park(now, self._settings.park_after)
        pressed = self._open.relieve(now)
        if self._flushing is not None and self._flushing.done():
            done, self._flushing = self._flushing, None
            done.result()
        settings = self._settings
        cause = "pressure" if pressed else self._open.due(now, settings.flush_rows, settings.flush_bytes, settings.flush_every)
        if cause and self._flushing is None:
            self._flushing = asyncio.create_task(self.flusher.flush(cause))
        await self._tick_if_due()
        if self._open.over and self._flushing is not None:
            await self._keep_polling(self._flushing)

    async def _keep_polling(self, task: "asyncio.Future[Any]") -> None:
        """Wait for something before reading further, while the group sees that this worker lives."""
        self.member.pause()
        while not task.done():
            await asyncio.wait({task}, timeout=TICK_S)
            # Paused, so this gives nothing; if something resumed in between, what it gives is not lost.
            self._kept += await self.member.records(0, 1)
            await self._tick_if_due()
        if not self._waiter.waiting:
            self.member.resume()

    async def _tick_if_due(self) -> None:
        now = self._clocks.monotonic()
        if now - self._last_tick >= TICK_S:
            self._last_tick = now
            await self._tick()

    async def _tick(self) -> None:
        """Follow erasures and schemas, commit, watermarks, gauges."""
        try:
            await self.member.refresh_ends(self._clocks.now())
        except RetryableError as error:
            log.warning("the watermarks stay", error=str(error))
        try:
            await self._follower.poll()
            await self._settle()
        except RetryableError as error:
            log.warning("a tick was incomplete", error=str(error))
        self.status.turn()

    async def _settle(self) -> None:
        """Commit, then say how far everything was read.

        Raises:
            UnreachableError: the watermarks were not acknowledged; the next ones follow within a second.
        """
        await self._commit()
        await self._outbox.watermarks(self._watermarks())

    async def _commit(self) -> None:
        """Step 7."""
        due = {one.number: self._open.commit_offset(one.number, one.position) for one in self._partitions}
        changed = {number: offset for number, offset in due.items() if offset != self._partitions[number].committed}
        if changed and not await self.member.commit(changed):
            self._instruments.count("stillhouse_ingest_commit_failures_total")

    def _watermarks(self) -> list[Watermark]:
        return [
            Watermark(
                partition=one.number, watermark=one.watermark, position=one.position, committed=one.committed, worker=self.member.name
            )
            for one in self._partitions
        ]

    async def _on_revoked(self) -> None:
        """Flush what is complete and commit; but a store that is away must not hold up the group."""
        if not self._waiter.waiting:
            drained = self._flushing = asyncio.create_task(self._drain_after(self._flushing))  # one that takes longer goes on
            await asyncio.wait({drained}, timeout=self._settings.session_timeout / 2)
            if drained.done():
                drained.result()
            await self._commit()

    async def _drain_after(self, flushing: "asyncio.Task[None] | None") -> None:
        if flushing is not None:
            await flushing
        await self.flusher.drain("revoked")

    def _on_lost(self, partition: int) -> None:
        self._open.lose(partition)
        self.status.lost(partition)

    async def _drain(self, cause: str) -> None:
        try:
            await asyncio.wait_for(self.flusher.drain(cause), timeout=self._settings.session_timeout * 2)
            await asyncio.wait_for(self._commit(), timeout=self._settings.session_timeout)
        except TimeoutError:
            log.warning("stopped before everything was flushed and committed: the next start reads it again")


async def _stopped(stop: Coroutine[Any, Any, None]) -> None:
    """Let a client disconnect. What it cannot finish ends with the process; the others have their turn all the same.

    A task of its own, because aiokafka's `stop` lets the cancellation of its inner tasks out when a fetch was failing.
    """
    task = asyncio.create_task(stop)
    await asyncio.wait({task}, timeout=CLOSE_S)
    if not task.done():
        task.cancel()
    result = (await asyncio.gather(task, return_exceptions=True))[0]
    if result is not None:
        log.warning("a client did not disconnect", error=repr(result))
