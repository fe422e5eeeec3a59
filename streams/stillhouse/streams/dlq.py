"""The dead-letter topic: what a record there carries, and how a person lists, reads and retries it.

A record is the original bytes under the key `topic/partition/offset`, with the original headers and ours. A retry sends the
original bytes to their topic again, under their own key, and leaves a mark beside them; a replay of either adds nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stillhouse.schemas.errors import RetryableError, UnreachableError, UsageError
from stillhouse.schemas.topics import DLQ, DLQ_MAX_BYTES
from stillhouse.sdk.kafka import KafkaSettings, confluent_args, confluent_producer_args, topic_name

Headers = list[tuple[str, bytes]]

STAGE, REASON, DETAIL, SOURCE_KEY = "stage", "reason", "detail", "source_key"
SOURCE_TOPIC, SOURCE_PARTITION, SOURCE_OFFSET = "source_topic", "source_partition", "source_offset"
_OURS = frozenset({STAGE, REASON, DETAIL, SOURCE_KEY, SOURCE_TOPIC, SOURCE_PARTITION, SOURCE_OFFSET})
RETRIED = "retried"
"""The stage of a mark."""

TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Entry:
    """One dead letter. `at` is its append time in microseconds since the epoch."""

    key: str
    stage: str
    reason: str
    detail: str
    source: str
    at: int
    source_key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...]
    retried: bool = False


def key_of(topic: str, partition: int, offset: int) -> str:
    """The key of a dead letter."""
    return f"{topic}/{partition}/{offset}"


def headers_of(
    original: Sequence[tuple[str, bytes]],
    *,
    stage: str,
    reason: str,
    detail: str,
    topic: str,
    partition: int,
    offset: int,
    key: bytes | None,
) -> Headers:
    """The original headers and ours."""
    ours = {
        STAGE: stage,
        REASON: reason,
        DETAIL: detail[:500],
        SOURCE_TOPIC: topic,
        SOURCE_PARTITION: str(partition),
        SOURCE_OFFSET: str(offset),
    }
    headers = [(name, value) for name, value in original if name not in _OURS]
    headers += [(name, text.encode()) for name, text in ours.items()]
    return headers if key is None else [*headers, (SOURCE_KEY, key)]


def entries(settings: KafkaSettings, *, reason: str | None = None, limit: int | None = None) -> list[Entry]:
    """The dead letters, newest first.

    Args:
        settings: the section `[kafka]`.
        reason: only those with this reason.
        limit: at most so many.

    Raises:
        UnreachableError: no broker answers.
    """
    found: dict[str, Entry] = {}
    retried: set[str] = set()
    for message in _read(settings):
        key = (message.key() or b"").decode("utf-8", "replace")
        headers = tuple((name, value or b"") for name, value in message.headers() or ())
        ours = {name: value.decode("utf-8", "replace") for name, value in headers if name in _OURS or name == "ce_source"}
        if ours.get(STAGE) == RETRIED:
            retried.add(key)
            continue
        found[key] = Entry(
            key=key,
            stage=ours.get(STAGE, ""),
            reason=ours.get(REASON, ""),
            detail=ours.get(DETAIL, ""),
            source=ours.get("ce_source", ""),
            at=message.timestamp()[1] * 1000,
            source_key=next((value for name, value in headers if name == SOURCE_KEY), None),
            value=message.value() or b"",
            headers=headers,
        )
    marked = [_marked(entry) if entry.key in retried else entry for entry in found.values() if reason in (None, entry.reason)]
    return sorted(marked, key=lambda entry: (-entry.at, entry.key))[:limit]


def _marked(entry: Entry) -> Entry:
    return Entry(**(entry.__dict__ | {"retried": True}))


def show(settings: KafkaSettings, key: str) -> Entry:
    """One dead letter.

    Raises:
        UsageError: there is none with this key.
        UnreachableError: no broker answers.
    """
    for entry in entries(settings):
        if entry.key == key:
            return entry
    raise UsageError("no such dead letter", where=key, fix="See `stillhouse dlq list`.")


def retry(settings: KafkaSettings, which: Callable[[Entry], bool], *, again: bool = False) -> int:
    """Send the original bytes of dead letters to their topic again.

    Args:
        settings: the section `[kafka]`.
        which: says which ones.
        again: also those that were retried before.

    Returns:
        How many were sent.

    Raises:
        UnreachableError: no broker answers.
        RetryableError: one was not acknowledged.
    """
    chosen = [entry for entry in entries(settings) if which(entry) and (again or not entry.retried)]
    if not chosen:
        return 0
    from confluent_kafka import Producer

    producer: Any = Producer(confluent_producer_args(settings, **{"message.max.bytes": DLQ_MAX_BYTES}))
    failed: list[str] = []

    def delivered(error: Any, _message: Any) -> None:
        if error is not None:
            failed.append(error.str())

    for entry in chosen:
        topic = entry.key.rsplit("/", 2)[0]
        original = [(name, value) for name, value in entry.headers if name not in _OURS]
        producer.produce(topic, value=entry.value, key=entry.source_key, headers=original, on_delivery=delivered)
    _flush(producer, settings, failed)
    for entry in chosen:  # only after all were acknowledged: a mark must not be there without its record
        mark = [(STAGE, RETRIED.encode())]
        producer.produce(topic_name(settings, DLQ), value=None, key=entry.key.encode(), headers=mark, on_delivery=delivered)
    _flush(producer, settings, failed)
    return len(chosen)


def _flush(producer: Any, settings: KafkaSettings, failed: list[str]) -> None:
    left = producer.flush(TIMEOUT_S)
    if left or failed:
        what = failed[0] if failed else f"{left} records were not acknowledged"
        raise RetryableError(
            f"the retry is not complete: {what}", where=settings.bootstrap_servers, fix="Retry again: it adds nothing twice."
        )


def _read(settings: KafkaSettings) -> Iterator[Any]:
    """Every record of the topic up to its end now."""
    from confluent_kafka import Consumer, KafkaException, TopicPartition

    args = {"group.id": "stillhouse-dlq-reader", "enable.auto.commit": False, "auto.offset.reset": "earliest"}
    consumer: Any = Consumer(confluent_args(settings, **args, **{"fetch.message.max.bytes": DLQ_MAX_BYTES}))
    try:
        topic = topic_name(settings, DLQ)
        partitions = consumer.list_topics(topic, timeout=TIMEOUT_S).topics[topic].partitions
        left: dict[int, int] = {}
        places = []
        for partition in partitions:
            first, end = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=TIMEOUT_S)
            if end > first:
                left[partition] = end
                places.append(TopicPartition(topic, partition, first))
        consumer.assign(places)
        while left:
            message = consumer.poll(TIMEOUT_S)
            if message is None:
                raise UnreachableError("the broker gives no more records", where=settings.bootstrap_servers)
            if message.error():
                raise KafkaException(message.error())
            if message.offset() + 1 >= left.get(message.partition(), 0):
                left.pop(message.partition(), None)
            yield message
    except KafkaException as error:
        raise UnreachableError(f"no Kafka broker answers: {error.args[0].str()}", where=settings.bootstrap_servers) from error
    finally:
        consumer.close()
