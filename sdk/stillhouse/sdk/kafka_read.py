"""A topic read whole, once: for tools, and for decisions that are kept in a log."""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    from confluent_kafka import Consumer, KafkaException, TopicPartition

    ours = {"group.id": reader, "enable.auto.commit": False, "auto.offset.reset": "earliest"}
    consumer: Any = Consumer(confluent_args(settings, **ours, **extra))
    try:
        topic = topic_name(settings, name)
        partitions = sorted(consumer.list_topics(topic, timeout=timeout).topics[topic].partitions)
        check(topic, partitions)
        left: dict[int, int] = {}
        places = []
        for partition in partitions:
            first, end = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=timeout)
            if end > first:
                left[partition] = end
                places.append(TopicPartition(topic, partition, first))
        consumer.assign(places)
        while left:
            message = consumer.poll(timeout)
            if message is None:
                raise UnreachableError(f"the broker gives no more records of {topic}", where=settings.bootstrap_servers)
            if message.error():
                raise KafkaException(message.error())
            if message.offset() + 1 >= left.get(message.partition(), 0):
                left.pop(message.partition(), None)
            yield message
    except KafkaException as error:
        fix = "Start it, or set [kafka] bootstrap_servers."
        raise UnreachableError(f"no Kafka broker answers: {error.args[0].str()}", where=settings.bootstrap_servers, fix=fix) from error
    finally:
        consumer.close()


def record_count(settings: KafkaSettings, name: str, *, timeout: float = 10.0) -> int:
    """How many records a topic holds, all partitions together.

    Args:
        settings: the section `[kafka]`.
        name: the topic's, without the prefix.
        timeout: seconds that the broker has for each answer.

    Raises:
        UnreachableError: no broker answers.
    """
    from confluent_kafka import Consumer, KafkaException, TopicPartition

    consumer: Any = Consumer(confluent_args(settings, **{"group.id": "stillhouse-count", "enable.auto.commit": False}))
    try:
        topic = topic_name(settings, name)
        places = [TopicPartition(topic, number) for number in consumer.list_topics(topic, timeout=timeout).topics[topic].partitions]
        spans = [consumer.get_watermark_offsets(place, timeout=timeout) for place in places]
    except KafkaException as error:
        fix = "Start it, or set [kafka] bootstrap_servers."
        raise UnreachableError(f"no Kafka broker answers: {error.args[0].str()}", where=settings.bootstrap_servers, fix=fix) from error
    finally:
        consumer.close()
    return sum(end - first for first, end in spans)
