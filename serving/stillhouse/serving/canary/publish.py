"""Writes a decision and reads back whether it was the one that counts."""

from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from stillhouse.schemas import codec
from stillhouse.schemas.errors import UnreachableError
from stillhouse.schemas.facts import CanaryVerdict, StudentState
from stillhouse.schemas.topics import STUDENTS, VERDICTS
from stillhouse.sdk.kafka import KafkaSettings, aiokafka_producer_args, topic_name
from stillhouse.serving.canary.follow import Students, Tail


class StudentsLog:
    """The topic `students`, followed and written.

    Nobody owns it: an author decides on what it has read, names the offset of that state, writes, and reads back. Of two authors on one
    state the log's order picks one, and the other one sees here that it lost.

    Args:
        settings: the section `[kafka]`.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._tail = Tail(settings, STUDENTS)
        self._producer: Any = None
        self.students = Students()

    async def start(self) -> None:
        """Connect, and read what is there.

        Raises:
            UnreachableError: no broker answers.
            PermanentError: there is no such topic, or a record in it cannot be read.
        """
        await self._tail.start()
        producer = AIOKafkaProducer(**aiokafka_producer_args(self._settings))
        try:
            await producer.start()
        except (KafkaError, OSError) as error:
            await producer.stop()
            raise UnreachableError(f"no Kafka broker answers: {error!r}", where=self._settings.bootstrap_servers) from error
        self._producer = producer
        await self.catch_up()

    async def stop(self) -> None:
        """Disconnect."""
        await self._tail.stop()
        if self._producer is not None:
            await self._producer.stop()

    async def catch_up(self) -> None:
        """Read up to the end.

        Raises:
            UnreachableError: no broker answers.
            UndecodableError: a record cannot be read.
        """
        await self._tail.catch_up(self.students.read)

    async def publish(self, record: StudentState) -> bool:
        """Write a decision on the state as it was last read.

        Args:
            record: its `prev` is set here.

        Returns:
            Whether it is followed; False when another author was first, or it does not fit the state.

        Raises:
            UnreachableError: the broker did not acknowledge it: it may or may not have been written, so read before deciding again.
        """
        record = msgspec.structs.replace(record, prev=self.students.states.of(record.route).offset)
        offset = await self._send(STUDENTS, record.student, record)
        await self.catch_up()
        return any(decision.accepted for decision in reversed(self.students.decisions) if decision.offset == offset)

    async def verdict(self, verdict: CanaryVerdict) -> None:
        """Write a verdict with its numbers.

        Raises:
            UnreachableError: the broker did not acknowledge it.
        """
        await self._send(VERDICTS, verdict.student, verdict)

    async def _send(self, topic: str, key: str, value: object) -> int:
        try:
            done = await self._producer.send_and_wait(topic_name(self._settings, topic), codec.encode(value), key.encode())
        except (TimeoutError, KafkaError, OSError) as error:
            raise UnreachableError(f"the broker did not acknowledge: {error!r}", where=topic) from error
        offset: int = done.offset
        return offset
