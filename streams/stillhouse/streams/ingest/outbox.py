"""What ingest sends: dead letters, facts, watermarks. Each delivery is awaited by its own future: `flush()` hides rejected sends."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from stillhouse.schemas import codec
from stillhouse.schemas.errors import UnreachableError
from stillhouse.schemas.facts import TrajectoryFacts, Watermark
from stillhouse.schemas.topics import DLQ, DLQ_MAX_BYTES, TRAJECTORIES
from stillhouse.sdk.kafka import KafkaSettings, aiokafka_producer_args, topic_name
from stillhouse.streams import dlq
from stillhouse.streams.ingest.records import Rejected

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
        producer = AIOKafkaProducer(**aiokafka_producer_args(self._settings, max_request_size=DLQ_MAX_BYTES + 64 * 1024))
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
        """Publish facts and await each delivery.

        Raises:
            UnreachableError: one was not acknowledged.
        """
        await self._deliver([(self._trajectories, one.key.encode(), codec.encode(one), ()) for one in facts])

    async def watermarks(self, marks: Iterable[Watermark]) -> None:
        """Publish watermarks and await each delivery.

        Raises:
            UnreachableError: one was not acknowledged.
        """
        await self._deliver([(self._trajectories, f"watermark/{one.partition}".encode(), codec.encode(one), ()) for one in marks])

    async def _deliver(self, messages: list[Message]) -> None:
        try:
            sent = [await self._producer.send(topic, value, key, headers=list(headers)) for topic, key, value, headers in messages]
            if sent:
                results = await asyncio.gather(*sent, return_exceptions=True)
                for result in results:
                    if isinstance(result, BaseException):
                        raise result
        except (TimeoutError, KafkaError, OSError) as error:
            where = messages[0][0]
            raise UnreachableError(f"the broker did not acknowledge: {error!r}", where=where) from error
