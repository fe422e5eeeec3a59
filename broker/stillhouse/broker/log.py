"""The log of one partition: segments, the durable end that consumers may see, idempotent producers, retention."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stillhouse.broker.batch import check_produced, stamped
from stillhouse.broker.configs import TopicConfig
from stillhouse.broker.errors import Code, KafkaError
from stillhouse.broker.files import read_json, replace_json
from stillhouse.broker.producers import Producers
from stillhouse.broker.segment import Segment

log = logging.getLogger("stillhouse.broker")


@dataclass(frozen=True)
class Appended:
    """Where a batch is: its first offset, and its LogAppendTime in ms (-1: it keeps its own timestamps)."""

    offset: int
    append_time: int


class PartitionLog:
    """One partition on disk. Not thread-safe; times are given by the caller in ms since 1970."""

    def __init__(self, folder: Path, now_ms: int, *, fsync: bool = True) -> None:
        """Open the log in `folder`, made if absent, and repair what a crash left. Raises OSError."""
        self.folder, self.fsync = folder, fsync
        self.watchers: set[Callable[[], None]] = set()  # called whenever consumers can see more
        self.broken = False  # an fsync failed: what the disk holds is unknown until the next start
        folder.mkdir(parents=True, exist_ok=True)
        bases = sorted(int(path.stem) for path in folder.glob("*.log"))
        self.segments = [Segment.load(folder, base) for base in bases]
        if self.segments:
            self.active.reopen()
        else:
            self.segments.append(Segment.create(folder, 0))
        self.opened_ms = now_ms
        self.producers = Producers()
        self._recover_producers(now_ms)
        self.high_watermark = self.end
        self._durable_size = self.active.size

    @property
    def active(self) -> Segment:
        """The segment that is written to."""
        return self.segments[-1]

    @property
    def start(self) -> int:
        """The first offset that is still there."""
        return self.segments[0].base_offset

    @property
    def end(self) -> int:
        """The next offset to be given; records from `high_watermark` on are not yet durable."""
        return self.active.next_offset

    @property
    def size(self) -> int:
        """Bytes of all segments."""
        return sum(segment.size for segment in self.segments)

    # --- producers' state: a snapshot at some offset, and the batches after it

    def _recover_producers(self, now_ms: int) -> None:
        offset = 0
        try:
            saved = read_json(self.folder / "producers.json")
            if saved and saved["offset"] <= self.end:
                self.producers.restore(saved["producers"])
                offset = saved["offset"]
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s: producers.json is damaged (%s); read from the log instead", self.folder, error)
        for segment in self.segments:
            if segment.next_offset <= offset:
                continue
            for _, batch in segment.batches(segment.position_of(offset)[0]):
                append_time = batch.max_timestamp if batch.attributes & 8 else -1
                self.producers.stored(batch, batch.base_offset, append_time, now_ms)

    def _save_producers(self, now_ms: int) -> None:
        self.producers.forget_idle(now_ms)
        replace_json(self.folder / "producers.json", {"offset": self.end, "producers": self.producers.snapshot()})

    # --- writing

    def append(self, data: bytes | memoryview, config: TopicConfig, now_ms: int) -> Appended:
        """Store one produced batch; it is visible and may be acknowledged once durable (`begin_sync`).

        Raises KafkaError: refused, or KAFKA_STORAGE_ERROR when the disk does not take it (and nothing has changed).
        """
        if self.broken:
            raise KafkaError(Code.KAFKA_STORAGE_ERROR, "this partition's disk failed; restart the broker")
        batch = check_produced(data)
        if len(data) > config.max_message_bytes:
            raise KafkaError(Code.MESSAGE_TOO_LARGE, f"a batch of {len(data)} bytes; max.message.bytes is {config.max_message_bytes}")
        if len(data) > config.segment_bytes:
            raise KafkaError(Code.RECORD_LIST_TOO_LARGE, f"a batch of {len(data)} bytes; segment.bytes is {config.segment_bytes}")
        config.check_timestamp(batch, now_ms)
        if (repeat := self.producers.repeated(batch)) is not None:
            return Appended(*repeat)
        append_time = now_ms if config.log_append_time else None
        try:
            self._roll_if_due(len(data), config, now_ms)
            stored = stamped(data, self.end, append_time)
            batch = batch._replace(base_offset=self.end, max_timestamp=batch.max_timestamp if append_time is None else append_time)
            self.active.append(stored, batch)
        except OSError as error:
            log.error("%s: not stored: %s", self.folder, error)
            raise KafkaError(Code.KAFKA_STORAGE_ERROR, f"not stored: {error.strerror}") from error
        appended = Appended(batch.base_offset, -1 if append_time is None else append_time)
        self.producers.stored(batch, appended.offset, appended.append_time, now_ms)
        return appended

    def _roll_if_due(self, size: int, config: TopicConfig, now_ms: int) -> None:
        if self.active.size == 0:
            self.opened_ms = now_ms
        elif self.active.size + size > config.segment_bytes or now_ms - self.opened_ms >= config.segment_ms:
            self.roll(now_ms)

    def roll(self, now_ms: int) -> None:
        """Seal the active segment and go on in a new one. Raises OSError and then goes on in the old one."""
        self.active.seal(fsync=self.fsync)
        self._save_producers(now_ms)
        created = Segment.create(self.folder, self.end)
        self.active.close()
        self.segments.append(created)
        self.opened_ms = now_ms
        self._show(self.end, 0)

    def _show(self, high_watermark: int, durable_size: int) -> None:
        self.high_watermark, self._durable_size = high_watermark, durable_size
        for watcher in list(self.watchers):
            watcher()

    def begin_sync(self) -> tuple[int, Callable[[], None]]:
        """A descriptor to fsync in another thread and then close, and what to call after it: consumers see what is durable now."""
        segment, size, end = self.active, self.active.size, self.end

        def durable() -> None:
            if segment is self.active and size > self._durable_size:
                self._show(end, size)

        return segment.duplicate(), durable

    def close(self, now_ms: int) -> None:
        """Seal everything, so that the next start need not read it through. Raises OSError."""
        if not self.broken:
            self.active.seal(fsync=self.fsync)
            self._save_producers(now_ms)
        self.active.close()

    def abandon(self) -> None:
        """Close without saving: the topic is being deleted."""
        self.broken = True
        self.active.close()
        for watcher in list(self.watchers):
            watcher()

    # --- reading

    def _segment_of(self, offset: int) -> int:
        return next(i for i in reversed(range(len(self.segments))) if self.segments[i].base_offset <= offset)

    def read(self, offset: int, max_bytes: int, *, whole_first: bool) -> bytes:
        """Stored batches from the one that holds `offset` on, about `max_bytes` (the last may be cut), none beyond the high watermark.

        With `whole_first` the first batch is complete even if it is larger. Raises KafkaError OFFSET_OUT_OF_RANGE.
        """
        if not self.start <= offset <= self.end:
            raise KafkaError(Code.OFFSET_OUT_OF_RANGE, f"{offset} is outside {self.start}..{self.end}")
        for segment in self.segments[self._segment_of(offset) :]:
            if offset >= self.high_watermark:
                break
            limit = self._durable_size if segment is self.active else segment.size
            position, first = segment.position_of(offset)
            wanted = max(max_bytes, first) if whole_first else max_bytes
            if position < limit:
                return segment.read(position, min(wanted, limit - position))
        return b""

    def at_time(self, timestamp: int) -> tuple[int, int] | None:
        """(offset, timestamp) of the first durable record not older than `timestamp`, or None."""
        found = (segment.at_time(timestamp, self.high_watermark) for segment in self.segments)
        return next((hit for hit in found if hit is not None), None)

    # --- retention

    def retain(self, config: TopicConfig, now_ms: int) -> None:
        """Delete whole segments from the start. Raises OSError.

        By their newest record too old (also the active one), or, sealed ones only, beyond retention.bytes.
        """

        def old(segment: Segment) -> bool:
            return 0 <= config.retention_ms and 0 <= segment.newest and now_ms - segment.newest > config.retention_ms

        while len(self.segments) > 1 and (
            old(self.segments[0]) or 0 <= config.retention_bytes <= self.size - self.segments[0].size or self.segments[0].size == 0
        ):
            self.segments.pop(0).delete()
        if len(self.segments) == 1 and self.high_watermark == self.end and not self.broken and old(self.active):
            self.roll(now_ms)
            self.segments.pop(0).delete()
        self.producers.forget_idle(now_ms)
