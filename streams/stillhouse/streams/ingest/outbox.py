"""What ingest sends: dead letters, facts, watermarks. Each delivery is awaited by its own future: `flush()` hides rejected sends."""

import asyncio
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from aiokafka.partitioner import DefaultPartitioner

from stillhouse.schemas import codec
from stillhouse.schemas.errors import UnreachableError
from stillhouse.schemas.facts import TrajectoryFacts, Watermark
from stillhouse.schemas.topics import DLQ, DLQ_MAX_BYTES, TRAJECTORIES
from stillhouse.sdk.kafka import KafkaSettings, aiokafka_producer_args, topic_name
from stillhouse.streams import dlq
from stillhouse.streams.ingest.records import Rejected

BATCH_BYTES = 256 * 1024

_partition_of = DefaultPartitioner()

Message = tuple[str, bytes | None, bytes | None, Sequence[tuple[str, bytes]]]


class Outbox:
    """One idempotent producer. Start it within the event loop."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._dlq, self._trajectories = topic_name(settings, DLQ), topic_name(settings, TRAJECTORIES)
        self._producer: Any = None

    async def start(self) -> None:
        """Connect.

        Raises:
            UnreachableError: no broker answers.
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

    async def stop(self) -> None:
        """Send what is left and disconnect."""
        if self._producer is not None:
            await self._producer.stop()

    async def dead_letters(self, rejected: Iterable[Rejected]) -> None:
        """Send records to the DLQ and await each delivery.

        Raises:
            UnreachableError: one was not acknowledged: sent again they are the same letters.
        """
        await self._deliver([self._letter(one) for one in rejected])

    def _letter(self, one: Rejected) -> Message:
        record = one.record
        key = dlq.key_of(record.topic, record.partition, record.offset).encode()
        headers = dlq.headers_of(
            record.headers,
            stage=one.stage,
            reason=one.reason,
            detail=one.detail,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            key=record.key,
        )
        return self._dlq, key, record.value, headers

    async def facts(self, facts: Iterable[TrajectoryFacts]) -> None:
        """Publish facts, in batches that are made here, and await the delivery of each batch: it is that of all in it.

        Raises:
            UnreachableError: one was not acknowledged.
        """
        messages = [(one.key.encode(), codec.encode(one)) for one in facts]
        if not messages:
            return
        with _delivery(self._trajectories):
            partitions = sorted(await self._producer.partitions_for(self._trajectories))
            shares: dict[int, list[tuple[bytes, bytes]]] = {}
            for message in messages:
                shares.setdefault(_partition_of(message[0], partitions, partitions), []).append(message)
            await _all_of([self._batches(partition, share) for partition, share in shares.items()])

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
        """
        await self._deliver([(self._trajectories, f"watermark/{one.partition}".encode(), codec.encode(one), ()) for one in marks])

    async def _deliver(self, messages: list[Message]) -> None:
        if messages:
            with _delivery(messages[0][0]):
                sent = [await self._producer.send(topic, value, key, headers=list(headers)) for topic, key, value, headers in messages]
                await _all_of(sent)


async def _all_of(deliveries: Iterable[Awaitable[object]]) -> None:
    """Await every one, then raise what one of them failed with."""
    for result in await asyncio.gather(*deliveries, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


@contextmanager
def _delivery(topic: str) -> Iterator[None]:
    try:
        yield
    except (TimeoutError, KafkaError, OSError) as error:
        raise UnreachableError(f"the broker did not acknowledge: {error!r}", where=topic) from error
