"""The dead-letter topic: what a record there carries, and how a person lists, reads and retries it.

A record is the original bytes under the key `topic/partition/offset`, with the original headers and ours. A retry sends the
original bytes to their topic again, under their own key, and leaves a mark beside them; a replay of either adds nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stillhouse.schemas.errors import RetryableError, UsageError
from stillhouse.schemas.topics import DLQ, DLQ_MAX_BYTES
from stillhouse.sdk.kafka import KafkaSettings, confluent_producer_args, topic_name
from stillhouse.sdk.kafka_read import read_whole

Header = tuple[str, bytes | None]

STAGE, REASON, DETAIL, SOURCE_KEY = "stage", "reason", "detail", "source_key"
SOURCE_TOPIC, SOURCE_PARTITION, SOURCE_OFFSET = "source_topic", "source_partition", "source_offset"
_OURS = frozenset({STAGE, REASON, DETAIL, SOURCE_KEY, SOURCE_TOPIC, SOURCE_PARTITION, SOURCE_OFFSET})
RETRIED = "retried"
"""The stage of a mark."""

TIMEOUT_S = 10.0
BATCH, BATCH_BYTES = 1000, 16 * 1024 * 1024
"""How much is sent again before it is marked."""


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
    headers: tuple[Header, ...]
    retried: bool = False


def key_of(topic: str, partition: int, offset: int) -> str:
    """The key of a dead letter."""
    return f"{topic}/{partition}/{offset}"


def headers_of(
    original: Sequence[Header],
    *,
    stage: str,
    reason: str,
    detail: str,
    topic: str,
    partition: int,
    offset: int,
    key: bytes | None,
) -> list[Header]:
    """The original headers and ours."""
    ours = {
        STAGE: stage,
        REASON: reason,
        DETAIL: detail[:500],
        SOURCE_TOPIC: topic,
        SOURCE_PARTITION: str(partition),
        SOURCE_OFFSET: str(offset),
    }
    headers: list[Header] = [(name, value) for name, value in original if name not in _OURS]
    headers += [(name, text.encode()) for name, text in ours.items()]
    return headers if key is None else [*headers, (SOURCE_KEY, key)]


def entries(settings: KafkaSettings, *, reason: str | None = None, limit: int | None = None) -> list[Entry]:
    """The dead letters, newest first.

    Args:
        settings: the section `[kafka]`.
        reason: only those with this reason.
        limit: at most so many; no more than twice as many are in memory.

    Raises:
        UnreachableError: no broker answers.
    """
    found: dict[str, Entry] = {}
    retried: set[str] = set()
    for entry in _letters(settings, retried):
        if reason in (None, entry.reason):
            found[entry.key] = entry
            if limit is not None and len(found) > 2 * limit:
                found = {one.key: one for one in _newest(found)[:limit]}
    return [replace(entry, retried=entry.key in retried) for entry in _newest(found)[:limit]]


def _newest(found: Mapping[str, Entry]) -> list[Entry]:
    return sorted(found.values(), key=lambda entry: (-entry.at, entry.key))


def _letters(settings: KafkaSettings, retried: set[str]) -> Iterator[Entry]:
    """Every dead letter as it is read; the keys of marks go into `retried`, which is whole at the end."""
    for message in _read(settings):
        key = (message.key() or b"").decode("utf-8", "replace")
        headers = tuple(message.headers() or ())
        ours = {name: (value or b"").decode("utf-8", "replace") for name, value in headers if name in _OURS or name == "ce_source"}
        if ours.get(STAGE) == RETRIED:
            retried.add(key)
            continue
        yield Entry(
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


def show(settings: KafkaSettings, key: str) -> Entry:
    """One dead letter.

    Raises:
        UsageError: there is none with this key.
        UnreachableError: no broker answers.
    """
    found: Entry | None = None
    retried: set[str] = set()
    for entry in _letters(settings, retried):
        if entry.key == key:
            found = entry
    if found is None:
        raise UsageError("no such dead letter", where=key, fix="See `stillhouse dlq list`.")
    return replace(found, retried=key in retried)


def retry(settings: KafkaSettings, which: Callable[[Entry], bool], *, again: bool = False) -> int:
    """Send the original bytes of dead letters to their topic again.

    The topic is read twice, to choose and to send, so that no more than one batch of values is in memory.

    Args:
        settings: the section `[kafka]`.
        which: says which ones; asked while reading, before it is known which were retried.
        again: also those that were retried before.

    Returns:
        How many were sent.

    Raises:
        UnreachableError: no broker answers.
        RetryableError: one was not acknowledged; those of earlier batches are sent and marked.
    """
    retried: set[str] = set()
    chosen = {entry.key for entry in _letters(settings, retried) if which(entry)}
    if not again:
        chosen -= retried
    if not chosen:
        return 0
    sender, sent, batch, size = _Sender(settings), 0, [], 0
    for entry in _letters(settings, set()):
        if entry.key in chosen:
            chosen.discard(entry.key)  # another letter under this key is the same record
            batch.append(entry)
            size += len(entry.value)
        if len(batch) >= BATCH or size >= BATCH_BYTES:
            sent += sender.send(batch)
            batch, size = [], 0
    return sent + sender.send(batch)


class _Sender:
    """Sends letters again, a batch at a time."""

    def __init__(self, settings: KafkaSettings) -> None:
        from confluent_kafka import Producer

        self._settings, self._dlq = settings, topic_name(settings, DLQ)
        self._producer: Any = Producer(confluent_producer_args(settings, **{"message.max.bytes": DLQ_MAX_BYTES}))
        self._failed: list[str] = []

    def send(self, batch: Sequence[Entry]) -> int:
        """Send these and mark them.

        Returns:
            How many they are.

        Raises:
            RetryableError: one was not acknowledged.
        """
        for entry in batch:
            original = [(name, value) for name, value in entry.headers if name not in _OURS]
            self._produce(entry.key.rsplit("/", 2)[0], value=entry.value, key=entry.source_key, headers=original)
        self._flush()
        for entry in batch:  # only after all were acknowledged: a mark must not be there without its record
            self._produce(self._dlq, value=None, key=entry.key.encode(), headers=[(STAGE, RETRIED.encode())])
        self._flush()
        return len(batch)

    def _produce(self, topic: str, **record: Any) -> None:
        while True:
            try:
                self._producer.produce(topic, on_delivery=self._delivered, **record)
                return
            except BufferError:  # full: what is in it is delivered, or fails, within the client's own time
                self._producer.poll(0.1)

    def _delivered(self, error: Any, _message: Any) -> None:
        if error is not None:
            self._failed.append(error.str())

    def _flush(self) -> None:
        left = self._producer.flush(TIMEOUT_S)
        if left or self._failed:
            what = self._failed[0] if self._failed else f"{left} records were not acknowledged"
            raise RetryableError(
                f"the retry is not complete: {what}",
                where=self._settings.bootstrap_servers,
                fix="Retry again: it adds nothing twice.",
            )


def _read(settings: KafkaSettings) -> Iterator[Any]:
    """Every record of the topic up to its end now."""
    large = {"fetch.message.max.bytes": DLQ_MAX_BYTES}
    return read_whole(settings, DLQ, reader="stillhouse-dlq-reader", timeout=TIMEOUT_S, extra=large)
