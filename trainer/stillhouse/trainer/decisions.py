"""What was decided elsewhere and binds a trainer: who is to be forgotten, and which students nothing may be built on."""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from stillhouse.schemas.codec import decode
from stillhouse.schemas.errors import PermanentError, UnreachableError
from stillhouse.schemas.facts import Erasure, StudentStage, StudentState
from stillhouse.schemas.topics import ERASURES, STUDENTS
from stillhouse.sdk.kafka import KafkaSettings, confluent_args, topic_name

TIMEOUT_S = 30.0
_TAKEN_OUT = frozenset({StudentStage.ROLLED_BACK, StudentStage.REVOKED, StudentStage.REJECTED})


class Erasures(msgspec.Struct, frozen=True, kw_only=True):
    """Who is to be forgotten, as of an offset of the topic `erasures`.

    Attributes:
        offset: of the last erasure that was read, in the topic's only partition; -1 when there is none. Where somebody gave the topic
            more partitions: one less than the sum of their ends, so that it still only grows.
        subjects: (tenant, subject) of each.
    """

    offset: int = -1
    subjects: frozenset[tuple[str, str]] = frozenset()

    def covers(self, tenant: str, subject: str | None) -> bool:
        """Whether rows of this subject may not be used any more."""
        return subject is not None and (tenant, subject) in self.subjects


NOBODY = Erasures()
ReadErasures = Callable[[], Erasures]


def read_erasures(settings: KafkaSettings) -> Erasures:
    """Read the topic `erasures` whole, all its partitions.

    Raises:
        UnreachableError: no broker answers.
        PermanentError: there is no such topic, or a record cannot be read: an erasure must not be passed over.
    """
    ends: dict[int, int] = {}
    subjects = set()
    for message in _records(settings, ERASURES):
        ends[message.partition()] = message.offset() + 1
        if message.value():
            erasure = decode(message.value(), Erasure)
            subjects.add((erasure.tenant, erasure.subject))
    return Erasures(offset=sum(ends.values()) - 1, subjects=frozenset(subjects))


def read_barred(settings: KafkaSettings) -> frozenset[str]:
    """The students that were rolled back, revoked or rejected: for regression, poison or erasure. None is ever a parent again.

    One such record is enough, also if another controller's decision came first: a student that somebody wanted out is no parent.

    Raises:
        UnreachableError: no broker answers.
        PermanentError: there is no topic `students`, it has more than one partition (the order of decisions would be lost), or a
            record cannot be read: it may be a revocation.
    """
    states = (decode(message.value(), StudentState) for message in _records(settings, STUDENTS, most=1) if message.value())
    return frozenset(state.student for state in states if state.stage in _TAKEN_OUT)


def _records(settings: KafkaSettings, name: str, *, most: int | None = None) -> Iterator[Any]:
    """Every record of a topic, partition after partition, up to its end now; a topic of more than `most` partitions is refused."""
    from confluent_kafka import Consumer, KafkaException

    topic = topic_name(settings, name)
    args = {"group.id": "stillhouse-trainer-reader", "enable.auto.commit": False, "auto.offset.reset": "earliest"}
    consumer: Any = Consumer(confluent_args(settings, **args))
    try:
        partitions = sorted(consumer.list_topics(topic, timeout=TIMEOUT_S).topics[topic].partitions)
        if not partitions:
            raise PermanentError(f"no topic {topic}", where=settings.bootstrap_servers, fix="Run `stillhouse topics apply`.")
        if most is not None and len(partitions) > most:
            fix = "Make it anew with one partition; `stillhouse topics apply` does."
            raise PermanentError(f"{topic} has {len(partitions)} partitions, not {most}", where=settings.bootstrap_servers, fix=fix)
        for partition in partitions:
            yield from _of_partition(consumer, topic, partition, settings.bootstrap_servers)
    except KafkaException as error:
        fix = "Start it, or set [kafka] bootstrap_servers."
        raise UnreachableError(f"no Kafka broker answers: {error.args[0].str()}", where=settings.bootstrap_servers, fix=fix) from error
    finally:
        consumer.close()


def _of_partition(consumer: Any, topic: str, partition: int, servers: str) -> Iterator[Any]:
    from confluent_kafka import KafkaException, TopicPartition

    at, end = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=TIMEOUT_S)
    consumer.assign([TopicPartition(topic, partition, at)])
    while at < end:
        message = consumer.poll(TIMEOUT_S)
        if message is None:
            raise UnreachableError(f"the broker gives no more records of {topic}", where=servers)
        if message.error():
            raise KafkaException(message.error())
        at = message.offset() + 1
        yield message
