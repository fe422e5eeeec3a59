"""A topic read whole, once: for tools, and for decisions that are kept in a log."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from stillhouse.schemas.errors import UnreachableError
from stillhouse.sdk.kafka import KafkaSettings, confluent_args, topic_name


def read_whole(
    settings: KafkaSettings,
    name: str,
    *,
    reader: str,
    timeout: float,
    check: Callable[[str, Sequence[int]], None] = lambda topic, partitions: None,
    extra: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[Any]:
    """Every record of a topic up to its end now.

    Args:
        settings: the section `[kafka]`.
        name: the topic's, without the prefix.
        reader: a group id that names who reads; nothing is committed.
        timeout: seconds that the broker has for each answer.
        check: looks at the topic's full name and its partitions, none where there is no such topic, and may raise.
        extra: librdkafka's own settings.

    Raises:
        UnreachableError: no broker answers, or it gives no more records.
    """
    from confluent_kafka import KafkaException, TopicPartition

    with _reader(settings, {"group.id": reader, "auto.offset.reset": "earliest", **extra}) as consumer:
        topic = topic_name(settings, name)
        partitions = _partitions(consumer, topic, timeout)
        check(topic, partitions)
        spans = {partition: span for partition, span in _spans(consumer, topic, partitions, timeout).items() if span[1] > span[0]}
        left = {partition: end for partition, (_, end) in spans.items()}
        consumer.assign([TopicPartition(topic, partition, first) for partition, (first, _) in spans.items()])
        while left:
            message = consumer.poll(timeout)
            if message is None:
                raise UnreachableError(f"the broker gives no more records of {topic}", where=settings.bootstrap_servers)
            if message.error():
                raise KafkaException(message.error())
            if message.offset() + 1 >= left.get(message.partition(), 0):
                left.pop(message.partition(), None)
            yield message


def record_count(settings: KafkaSettings, name: str, *, timeout: float = 10.0) -> int:
    """How many records a topic holds, all partitions together.

    Args:
        settings: the section `[kafka]`.
        name: the topic's, without the prefix.
        timeout: seconds that the broker has for each answer.

    Raises:
        UnreachableError: no broker answers.
    """
    with _reader(settings, {"group.id": "stillhouse-count"}) as consumer:
        topic = topic_name(settings, name)
        spans = _spans(consumer, topic, _partitions(consumer, topic, timeout), timeout)
    return sum(end - first for first, end in spans.values())


@contextmanager
def _reader(settings: KafkaSettings, ours: Mapping[str, Any]) -> Iterator[Any]:
    """A consumer that commits nothing; what Kafka says against it is that no broker answers."""
    from confluent_kafka import Consumer, KafkaException

    consumer: Any = Consumer(confluent_args(settings, **ours, **{"enable.auto.commit": False}))
    try:
        yield consumer
    except KafkaException as error:
        fix = "Start it, or set [kafka] bootstrap_servers."
        raise UnreachableError(f"no Kafka broker answers: {error.args[0].str()}", where=settings.bootstrap_servers, fix=fix) from error
    finally:
        consumer.close()


def _partitions(consumer: Any, topic: str, timeout: float) -> list[int]:
    return sorted(consumer.list_topics(topic, timeout=timeout).topics[topic].partitions)


def _spans(consumer: Any, topic: str, partitions: Sequence[int], timeout: float) -> dict[int, tuple[int, int]]:
    """The offsets of the first record and behind the last one, by partition."""
    from confluent_kafka import TopicPartition

    return {partition: consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=timeout) for partition in partitions}
