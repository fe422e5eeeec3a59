"""What streams send: dead letters, facts, watermarks, tasks. Each delivery is awaited by its own future: `flush()` hides rejected sends."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    InvalidTopicError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
from aiokafka.partitioner import DefaultPartitioner

from stillhouse.schemas import codec
from stillhouse.schemas.errors import PermanentError, UnreachableError
from stillhouse.schemas.facts import TeacherTask, TrajectoryFacts, Watermark
from stillhouse.schemas.topics import DLQ, DLQ_MAX_BYTES, TEACHER_TASKS, TRAJECTORIES
from stillhouse.sdk.kafka import KafkaSettings, aiokafka_producer_args, topic_name
from stillhouse.streams import dlq
from stillhouse.streams.ingest.facts_fit import message_of
from stillhouse.streams.ingest.letters import letter_of
from stillhouse.streams.ingest.records import Rejected
from stillhouse.streams.instruments import Instruments
from stillhouse.streams.logs import logger

log = logger(__name__)

BATCH_BYTES = 256 * 1024

_partition_of = DefaultPartitioner()

# What the same record meets again, however often it is sent.
_REFUSED = (
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    ClusterAuthorizationFailedError,
    InvalidTopicError,
    PolicyViolationError,
)
_FIX = "`stillhouse topics apply` says how the topic differs from ours; ingest must be allowed to write to it."

Message = tuple[str, bytes | None, bytes | None, Sequence[dlq.Header]]


class Outbox:
    """One idempotent producer. Start it within the event loop.

    Args:
        settings: the section `[kafka]`.
        instruments: counts dead letters and facts that were cut.
    """

    def __init__(self, settings: KafkaSettings, instruments: Instruments | None = None) -> None:
        self._settings, self._instruments = settings, instruments
        self._dlq, self._trajectories = topic_name(settings, DLQ), topic_name(settings, TRAJECTORIES)
        self._producer: Any = None

    async def start(self) -> None:
        """Connect, and look for the topics that this writes: a missing one is a mistake to be told now, not waited for.

        Raises:
            UnreachableError: no broker answers.
            PermanentError: a topic is missing, or these credentials may not see it.
        """
        # The size the client checks includes key and headers, whose room the topic's limit already has.
        producer = AIOKafkaProducer(
            **aiokafka_producer_args(self._settings, max_request_size=DLQ_MAX_BYTES + 64 * 1024, max_batch_size=BATCH_BYTES)
        )
        try:
            await producer.start()
        except (KafkaError, OSError) as error:
            await producer.stop()
            raise UnreachableError(f"no Kafka broker answers: {error}", where=self._settings.bootstrap_servers) from error
        self._producer = producer
        await self._require(self._dlq, self._trajectories)

    async def _require(self, *topics: str) -> None:
        try:
            there = (await self._producer.client.fetch_all_metadata()).topics()
        except (TimeoutError, KafkaError, OSError) as error:
            raise UnreachableError(f"no Kafka broker answers: {error}", where=self._settings.bootstrap_servers) from error
        if missing := [topic for topic in topics if topic not in there]:
            where, fix = self._settings.bootstrap_servers, "Run `stillhouse topics apply`, and let ingest write to it."
            raise PermanentError(f"no topic {', '.join(missing)}", where=where, fix=fix)

    async def stop(self) -> None:
        """Send what is left and disconnect."""
        if self._producer is not None:
            await self._producer.stop()

    async def dead_letters(self, rejected: Iterable[Rejected]) -> None:
        """Send records to the DLQ and await each delivery. What is too large for any record there is cut, and counted.

        Raises:
            UnreachableError: one was not acknowledged: sent again they are the same letters.
            PermanentError: the topic is gone, or refuses them.
        """
        letters = [letter_of(one) for one in rejected]
        await self._deliver([(self._dlq, letter.key, letter.value, letter.headers) for letter in letters])
        cut = sum(letter.cut for letter in letters)
        if cut:
            log.warning("records are too large for the DLQ: their letters hold the beginning of them", count=cut)
            self._count("stillhouse_ingest_dlq_cut_total", cut)

    async def facts(self, facts: Iterable[TrajectoryFacts]) -> None:
        """Publish facts, in batches that are made here, and await the delivery of each batch: it is that of all in it.

        What is too large for a message is cut, or left to its row alone where its name does not fit: said, counted, never waited for.

        Raises:
            UnreachableError: one was not acknowledged.
            PermanentError: the topic is gone, or refuses them.
        """
        messages = self._facts_messages(facts)
        if not messages:
            return
        async with self._delivery(self._trajectories):
            partitions = sorted(await self._producer.partitions_for(self._trajectories))
            shares: dict[int, list[tuple[bytes, bytes]]] = {}
            for message in messages:
                shares.setdefault(_partition_of(message[0], partitions, partitions), []).append(message)
            await _all_of([self._batches(partition, share) for partition, share in shares.items()])

    def _facts_messages(self, facts: Iterable[TrajectoryFacts]) -> list[tuple[bytes, bytes]]:
        messages = []
        for key, value, cut in map(message_of, facts):
            if cut:
                log.warning("facts are too large for a message: the row has the whole", key=key[:200].decode(errors="replace"), how=cut)
                self._count("stillhouse_ingest_facts_cut_total", how=cut)
            if cut != "withheld":
                messages.append((key, value))
        return messages

    def _count(self, name: str, amount: float = 1, **labels: str) -> None:
        if self._instruments is not None:
            self._instruments.count(name, amount, **labels)

    async def _batches(self, partition: int, messages: list[tuple[bytes, bytes]]) -> None:
        """Send messages of one partition in as few batches as hold them."""
        sent, left = [], messages
        while left:
            batch = self._producer.create_batch()
            count = 0
            while count < len(left) and batch.append(timestamp=None, key=left[count][0], value=left[count][1]) is not None:
                count += 1
            if not count:
                raise MessageSizeTooLargeError(f"{len(left[0][1])} bytes")
            batch.close()
            sent.append(await self._producer.send_batch(batch, self._trajectories, partition=partition))
            left = left[count:]
        await _all_of(sent)

    async def watermarks(self, marks: Iterable[Watermark]) -> None:
        """Publish watermarks and await each delivery.

        Raises:
            UnreachableError: one was not acknowledged.
            PermanentError: the topic is gone, or refuses them.
        """
        await self._deliver([(self._trajectories, f"watermark/{one.partition}".encode(), codec.encode(one), ()) for one in marks])

    async def tasks(self, tasks: Iterable[TeacherTask]) -> None:
        """Publish tasks for the teacher and await each delivery.

        Raises:
            UnreachableError: one was not acknowledged: sent again it is the same task.
            PermanentError: the topic is gone, or refuses them.
        """
        topic = topic_name(self._settings, TEACHER_TASKS)
        await self._deliver([(topic, one.task_id.encode(), codec.encode(one), ()) for one in tasks])

    async def _deliver(self, messages: list[Message]) -> None:
        if messages:
            async with self._delivery(messages[0][0]):
                sent = [await self._producer.send(topic, value, key, headers=list(headers)) for topic, key, value, headers in messages]
                await _all_of(sent)

    @asynccontextmanager
    async def _delivery(self, topic: str) -> AsyncIterator[None]:
        """What a delivery fails with, as an error of ours: to be waited for only where waiting can help."""
        try:
            yield
        except _REFUSED as error:
            raise PermanentError(f"the broker refuses what ingest writes: {error!r}", where=topic, fix=_FIX) from error
        except (TimeoutError, KafkaError, OSError) as error:
            if isinstance(error, UnknownTopicOrPartitionError | KafkaTimeoutError):
                await self._require(topic)  # the client says the same of a broker that is away and of a topic that is gone
            raise UnreachableError(f"the broker did not acknowledge: {error!r}", where=topic) from error


async def _all_of(deliveries: Iterable[Awaitable[object]]) -> None:
    """Await every one, then raise what one of them failed with."""
    for result in await asyncio.gather(*deliveries, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
