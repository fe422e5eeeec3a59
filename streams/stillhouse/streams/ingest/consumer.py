"""The group member: static membership, explicit starts, kept partitions keep their memory. Knows aiokafka and nothing of events."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError
from aiokafka.structs import OffsetAndMetadata

from stillhouse.schemas.errors import PermanentError, RetryableError, UnreachableError
from stillhouse.sdk.kafka import KafkaSettings, aiokafka_args
from stillhouse.streams.ingest.partitions import Partition, Partitions
from stillhouse.streams.ingest.records import Record
from stillhouse.streams.logs import logger
from stillhouse.streams.settings import IngestSettings

log = logger(__name__)


class Batch(NamedTuple):
    """Records of one partition, in order, with the assignment that they were read in."""

    partition: Partition
    records: list[Record]


ENDS_S = 2.0
"""How long the broker may take to say where partitions end."""

OnRevoked = Callable[[], Awaitable[None]]
OnLost = Callable[[int], None]


class Member(ConsumerRebalanceListener):  # type: ignore[misc]
    """One consumer of one topic in one group.

    Args:
        kafka: the section `[kafka]`.
        settings: the section `[ingest]`.
        topic: its full name.
        instance: which worker this is; nobody else in the group may be it, on any machine.
        partitions: the books, kept here.
        on_revoked: called before partitions go: flush what is complete, commit.
        on_lost: called for each partition that somebody else reads now.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        settings: IngestSettings,
        topic: str,
        instance: int | str,
        partitions: Partitions,
        on_revoked: OnRevoked,
        on_lost: OnLost,
    ) -> None:
        self._kafka, self._settings, self.topic = kafka, settings, topic
        self.group = f"{kafka.prefix}.{settings.group}" if kafka.prefix else settings.group
        self.name = f"{self.group}-{instance}"
        self._partitions, self._on_revoked, self._on_lost = partitions, on_revoked, on_lost
        self._consumer: Any = None
        self._failure: PermanentError | None = None
        self._unbegun: dict[TopicPartition, int | None] = {}
        self._beginning = asyncio.Lock()
        self.joined = False
        self.paused = False

    async def start(self) -> None:
        """Connect and join the group.

        Raises:
            UnreachableError: no broker answers.
        """
        self._consumer = AIOKafkaConsumer(
            **aiokafka_args(
                self._kafka,
                group_id=self.group,
                group_instance_id=self.name,
                enable_auto_commit=False,
                auto_offset_reset="none",
                session_timeout_ms=int(self._settings.session_timeout * 1000),
                heartbeat_interval_ms=int(self._settings.session_timeout * 1000 / 4),
                max_poll_interval_ms=int(self._settings.max_poll_interval * 1000),
                max_partition_fetch_bytes=4 * 1024 * 1024,
                check_crcs=False,
            )
        )
        try:
            await self._consumer.start()
        except (KafkaError, OSError) as error:
            raise UnreachableError(f"no Kafka broker answers: {error}", where=self._kafka.bootstrap_servers) from error
        self._consumer.subscribe([self.topic], listener=self)

    async def stop(self) -> None:
        """Disconnect. A static member stays in the group until its session ends, so that a restart moves nothing."""
        if self._consumer is not None:
            await self._consumer.stop()

    def partition_count(self) -> int:
        """How many partitions the topic has: there are never more workers that read."""
        return len(self._consumer.partitions_for_topic(self.topic) or ())

    async def records(self, wait: float, limit: int) -> list[Batch]:
        """New records, a batch for each partition. Nothing while paused, but the group sees that this worker lives.

        Raises:
            PermanentError: retention has deleted what was not read yet, and the settings say to stop.
            UnreachableError: no broker answers.
        """
        if self._failure is not None:
            raise self._failure
        if self._unbegun and not self._beginning.locked():
            await self._begin_all()
        try:
            found = await self._consumer.getmany(timeout_ms=int(wait * 1000), max_records=limit)
        except NoOffsetForPartitionError:
            return []  # `on_partitions_assigned` is about to decide where to start
        except OffsetOutOfRangeError as error:
            for place in error.args[0]:
                if place.partition in self._partitions:  # else `on_partitions_assigned` is about to decide
                    self._unbegun[place] = self._partitions[place.partition].position
            await self._begin_all()
            return []
        except KafkaError as error:
            raise UnreachableError(f"the broker does not answer: {error!r}", where=self._kafka.bootstrap_servers) from error
        batches = [
            self._fresh(self._partitions[place.partition], got) for place, got in found.items() if place.partition in self._partitions
        ]
        return [batch for batch in batches if batch.records]

    def _fresh(self, partition: Partition, records: list[Record]) -> Batch:
        """Without what is in memory already: a rebalance delivers again."""
        if records and records[0].offset < partition.position:
            records = [one for one in records if one.offset >= partition.position]
        return Batch(partition, records)

    async def refresh_ends(self, now: int) -> None:
        """Ask where the partitions end: also the paused and the stopped, of which no fetch tells.

        Args:
            now: microseconds since the epoch.

        Raises:
            UnreachableError: no broker answers: the ends and the watermarks stay as they are.
        """
        asked = {TopicPartition(self.topic, one.number): one for one in self._partitions}
        if not asked:
            return
        try:
            ends = await asyncio.wait_for(self._consumer.end_offsets(list(asked)), ENDS_S)
        except (KafkaError, TimeoutError) as error:
            raise UnreachableError(f"the broker does not say where partitions end: {error!r}", where=self.topic) from error
        for place, partition in asked.items():
            if place in ends and self._partitions.current(partition):
                partition.confirm(ends[place], now)

    async def commit(self, offsets: Mapping[int, int]) -> bool:
        """Commit offsets of partitions.

        Returns:
            Whether they are committed; not, when the group has moved on or the broker is away: then a later commit is.
        """
        if not offsets:
            return True
        places = {TopicPartition(self.topic, number): OffsetAndMetadata(offset, "") for number, offset in offsets.items()}
        try:
            await self._consumer.commit(places)
        except KafkaError as error:
            log.warning("a commit was refused", member=self.name, error=repr(error))
            return False
        for number, offset in offsets.items():
            if number in self._partitions:
                self._partitions[number].committed = offset
        return True

    def pause(self) -> None:
        """Read nothing, stay in the group."""
        self.paused = True
        self._consumer.pause(*self._consumer.assignment())

    def resume(self) -> None:
        """Read again, but for the stopped."""
        self.paused = False
        stopped = self._partitions.stopped
        self._consumer.resume(*(place for place in self._consumer.assignment() if place.partition not in stopped))

    def stop_partition(self, number: int) -> None:
        """Read this partition no further."""
        self._partitions[number].stopped = True
        self._consumer.pause(TopicPartition(self.topic, number))

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """A rebalance begins: this worker may get any of them back, so nothing is dropped yet."""
        try:
            await self._on_revoked()
        except RetryableError as error:
            log.warning("not everything was flushed before a rebalance", member=self.name, error=str(error))
        except PermanentError as error:
            self._failure = error

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Kept partitions go on where they were (aiokafka would deliver them again from the commit), new ones at their commit."""
        places = {place.partition: place for place in assigned}
        async with self._beginning:  # what is being begun was assigned before
            for number in self._partitions.numbers():
                if number not in places:
                    self._partitions.end(number)
                    self._on_lost(number)
                else:
                    self._seek(places[number], self._partitions[number].position)
            self._unbegun = {places[number]: None for number in sorted(places.keys() - set(self._partitions.numbers()))}
        self.joined = not self._unbegun
        try:
            await self._begin_all()
        except RetryableError as error:
            log.warning("partitions are not begun yet", member=self.name, error=str(error))
        except PermanentError as error:
            self._failure = error
        log.info("partitions assigned", member=self.name, partitions=sorted(places))

    async def _begin_all(self) -> None:
        """Begin what is not begun yet. Interrupted, it goes on there when it is called again.

        Raises:
            PermanentError: as `records`.
            UnreachableError: no broker answers.
        """
        async with self._beginning:
            try:
                while self._unbegun:
                    place, position = next(iter(self._unbegun.items()))
                    await self._begin(place, await self._consumer.committed(place) if position is None else position)
                    del self._unbegun[place]
            except KafkaError as error:
                raise UnreachableError(f"the broker does not answer: {error!r}", where=self._kafka.bootstrap_servers) from error
            self.joined = True

    async def _begin(self, place: TopicPartition, committed: int | None) -> None:
        first = (await self._consumer.beginning_offsets([place]))[place]
        end = (await self._consumer.end_offsets([place]))[place]
        position = self._start(place, committed, first, end)
        self._partitions.begin(place.partition, position, end, committed)
        self._seek(place, position)

    def _seek(self, place: TopicPartition, position: int) -> None:
        self._consumer.seek(place, position)
        if self.paused or self._partitions[place.partition].stopped:
            self._consumer.pause(place)

    def _start(self, place: TopicPartition, committed: int | None, first: int, end: int) -> int:
        where = f"{place.topic}/{place.partition}"
        if committed is None:
            chosen = first if self._settings.first_start == "earliest" else end
            log.info("first start", partition=where, offset=chosen, setting=f"first_start={self._settings.first_start}")
            return int(chosen)
        if first <= committed <= end:
            return committed
        if self._settings.lost_offsets == "stop":
            raise PermanentError(
                f"the next offset to read is {committed}, and the log has {first} to {end}: records were deleted before they were read",
                where=where,
                fix='Set [ingest] lost_offsets = "earliest" to go on at the oldest record.',
            )
        log.error("records were lost", partition=where, committed=committed, first=first, end=end)
        return first
