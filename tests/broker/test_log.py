"""The log of a partition against a model: appends, rolls, clean restarts, crashes with torn ends, retention."""

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stillhouse.broker.batch import HEADER_SIZE, read_header
from stillhouse.broker.configs import TopicConfig
from stillhouse.broker.errors import Code, KafkaError
from stillhouse.broker.log import PartitionLog
from tests.support.records import make_batch

NOW = 1_800_000_000_000
CONFIG = replace(TopicConfig.of({}), segment_bytes=3000)


def durable(log: PartitionLog) -> None:
    descriptor, done = log.begin_sync()
    os.close(descriptor)
    done()


def append(log: PartitionLog, values: list[bytes], *, config: TopicConfig = CONFIG, now: int = NOW, **fields: int) -> int:
    batch = make_batch(values, timestamps=[now] * len(values), **fields)
    offset = log.append(batch, config, now).offset
    durable(log)
    return offset


def contents(log: PartitionLog, *, step: int = 700) -> list[tuple[int, bytes]]:
    """All records from the start, fetched as a consumer does: a few bytes at a time, from offset to offset."""
    found, offset = [], log.start
    while data := log.read(offset, step, whole_first=True):
        records = MemoryRecords(data)
        while records.has_next():
            for record in records.next_batch():
                if record.offset >= offset:
                    found.append((record.offset, record.value))
        offset = found[-1][0] + 1
    return found


class LogMachine(RuleBasedStateMachine):
    """What was appended and not yet retained away is there, at its offset, whatever happened to the process."""

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.log = PartitionLog(self.folder, NOW)
        self.model: list[tuple[int, bytes]] = []
        self.next = 0

    @rule(sizes=st.lists(st.integers(0, 700), min_size=1, max_size=4))
    def append(self, sizes: list[int]) -> None:
        values = [bytes([self.next % 256]) * size for size in sizes]
        assert append(self.log, values) == self.next
        self.model += [(self.next + i, value) for i, value in enumerate(values)]
        self.next += len(values)

    @rule()
    def restart(self) -> None:
        self.log.close(NOW)
        self.log = PartitionLog(self.folder, NOW)

    @rule(torn=st.binary(max_size=200))
    def crash_within_a_write(self, torn: bytes) -> None:
        path = self.log.active.path
        self.log.active.close()
        with path.open("ab") as file:
            file.write(torn)
        self.log = PartitionLog(self.folder, NOW)

    @rule(size=st.integers(1, 500), kept=st.integers(1, 400))
    def crash_within_a_batch(self, size: int, kept: int) -> None:
        batch = make_batch([b"never acknowledged" + bytes(size)], timestamps=[NOW])
        path = self.log.active.path
        self.log.active.close()
        with path.open("ab") as file:
            file.write(batch[: min(kept, len(batch) - 1)])
        self.log = PartitionLog(self.folder, NOW)

    @rule(size=st.integers(1, 2000), lost=st.integers(2, 60))  # a batch ends with a zero anyway
    def power_fails_within_a_batch(self, size: int, lost: int) -> None:
        """The file has its new length, but the end of the batch never reached the disk and reads as zeros."""
        batch = make_batch([b"never acknowledged" * (1 + size // 18)], timestamps=[NOW])
        batch = self.next.to_bytes(8, "big") + batch[8:-lost] + bytes(lost)
        path = self.log.active.path
        self.log.active.close()
        with path.open("ab") as file:
            file.write(batch)
        self.log = PartitionLog(self.folder, NOW)

    @precondition(lambda self: self.next > 3)
    @rule(kept=st.integers(0, 4000))
    def retain_bytes(self, kept: int) -> None:
        before = self.log.size
        self.log.retain(replace(CONFIG, retention_bytes=kept), NOW)
        assert self.log.size >= min(kept, before), "no more is deleted than asked"
        assert len(self.log.segments) == 1 or self.log.size - self.log.segments[0].size < kept
        self.model = [item for item in self.model if item[0] >= self.log.start]

    @rule()
    def retain_time(self) -> None:
        self.log.retain(replace(CONFIG, retention_ms=1000), NOW + 1001)
        self.model = []
        assert self.log.start == self.log.end

    @invariant()
    def all_there(self) -> None:
        if hasattr(self, "log"):
            assert contents(self.log) == self.model
            assert self.log.end == self.log.high_watermark == self.next

    def teardown(self) -> None:
        if hasattr(self, "log"):
            self.log.active.close()
            shutil.rmtree(self.folder)


TestLog = LogMachine.TestCase
TestLog.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stamps=st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=4), min_size=1, max_size=30), asked=st.integers(0, 55))
def test_offsets_for_times_equal_a_scan(stamps: list[list[int]], asked: int) -> None:
    folder = Path(tempfile.mkdtemp())
    log = PartitionLog(folder, NOW, fsync=False)
    try:
        for batch in stamps:
            log.append(make_batch([bytes(500)] * len(batch), timestamps=batch), CONFIG, NOW)
        durable(log)
        flat = list(enumerate(stamp for batch in stamps for stamp in batch))
        assert log.at_time(asked) == next(((offset, stamp) for offset, stamp in flat if stamp >= asked), None)
    finally:
        log.active.close()
        shutil.rmtree(folder)


def test_only_what_is_durable_can_be_read(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, NOW)
    append(log, [b"seen"])
    seen = []
    log.watchers.add(lambda: seen.append(log.high_watermark))
    log.append(make_batch([b"written only"], timestamps=[NOW]), CONFIG, NOW)
    assert (log.high_watermark, log.end, seen) == (1, 2, [])
    assert contents(log) == [(0, b"seen")] and log.at_time(NOW) == (0, NOW)
    durable(log)
    assert seen == [2] and [value for _, value in contents(log)] == [b"seen", b"written only"]
    log.close(NOW)


def test_a_late_fsync_does_not_take_back_what_is_visible(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, NOW)
    log.append(make_batch([b"a"], timestamps=[NOW]), CONFIG, NOW)
    early, early_done = log.begin_sync()
    log.append(make_batch([b"b"], timestamps=[NOW]), CONFIG, NOW)
    durable(log)
    early_done()
    assert log.high_watermark == 2 and len(contents(log)) == 2
    late, late_done = log.begin_sync()
    log.append(make_batch([bytes(2900)], timestamps=[NOW]), CONFIG, NOW)  # begins a segment, which seals the one being synced
    late_done()
    assert (log.high_watermark, len(log.segments)) == (2, 2) and len(contents(log)) == 2
    durable(log)
    assert log.high_watermark == 3 and len(contents(log)) == 3
    log.close(NOW)
    os.close(early)
    os.close(late)


def test_batches_are_stored_as_they_came(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, NOW)
    append(log, [b"first"])
    batch = make_batch([b"a", b"b"], timestamps=[NOW, NOW], codec=1, producer=5, epoch=2, sequence=0)
    log.append(batch, CONFIG, NOW)
    durable(log)
    stored = log.read(1, 10_000, whole_first=True)
    assert stored[16:] == batch[16:], "from the magic byte on"
    header = read_header(stored)
    assert header is not None and (header.base_offset, header.leader_epoch) == (1, 0)
    log.close(NOW)


def test_append_time_is_stamped_with_a_valid_checksum(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, NOW)
    stamping = replace(CONFIG, log_append_time=True)
    assert log.append(make_batch([b"a", b"b"], timestamps=[1, NOW * 2]), stamping, NOW).append_time == NOW
    durable(log)
    batch = MemoryRecords(log.read(0, 10_000, whole_first=True)).next_batch()
    assert batch is not None and batch.validate_crc() and [r.timestamp for r in batch] == [NOW, NOW]
    assert log.at_time(NOW) == (0, NOW)
    log.close(NOW)


def refused(log: PartitionLog, batch: bytes, config: TopicConfig = CONFIG) -> Code:
    with pytest.raises(KafkaError) as caught:
        log.append(batch, config, NOW)
    return caught.value.code


def test_what_is_not_one_sound_batch_is_refused(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, NOW)
    sound = make_batch([b"value"], timestamps=[NOW])
    assert refused(log, b"") is Code.CORRUPT_MESSAGE
    assert refused(log, sound[: HEADER_SIZE - 1]) is Code.CORRUPT_MESSAGE
    assert refused(log, sound[:-1]) is Code.CORRUPT_MESSAGE
    assert refused(log, sound[:-1] + b"\xff") is Code.CORRUPT_MESSAGE
    assert refused(log, sound[:16] + b"\x01" + sound[17:]) is Code.UNSUPPORTED_FOR_MESSAGE_FORMAT
    assert refused(log, sound + sound) is Code.INVALID_RECORD
    assert refused(log, make_batch([bytes(5000)], timestamps=[NOW])) is Code.RECORD_LIST_TOO_LARGE
    assert refused(log, sound, replace(CONFIG, max_message_bytes=10)) is Code.MESSAGE_TOO_LARGE
    assert log.end == 0
    log.close(NOW)


def test_producers_are_known_after_a_crash_and_after_a_clean_stop(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, NOW)
    for sequence in range(12):  # over several segments
        assert append(log, [bytes(700)], producer=9, epoch=0, sequence=sequence) == sequence
    for restart in ("crash", "stop", "crash"):
        if restart == "stop":
            log.close(NOW)
        log = PartitionLog(tmp_path, NOW)
        assert append(log, [bytes(700)], producer=9, epoch=0, sequence=log.end - 1) == log.end - 1, "a repeat"
        with pytest.raises(KafkaError, match="is next"):
            append(log, [bytes(700)], producer=9, epoch=0, sequence=log.end + 1)
        assert append(log, [bytes(700)], producer=9, epoch=0, sequence=log.end) == log.end - 1
    log.close(NOW)


def test_producers_are_known_when_their_records_are_no_longer_there(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, NOW)
    append(log, [bytes(2500)], producer=9, epoch=0, sequence=0)
    append(log, [bytes(2500)])  # begins a segment, so the other can be deleted
    log.retain(replace(CONFIG, retention_bytes=0), NOW)
    assert log.start == 1
    log = PartitionLog(tmp_path, NOW)  # after a kill
    assert append(log, [bytes(2500)], producer=9, epoch=0, sequence=0) == 0, "a repeat"
    assert log.end == 2
    log.close(NOW)


def test_a_damaged_producer_snapshot_is_made_again_from_the_log(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, NOW)
    append(log, [b"x"], producer=9, epoch=0, sequence=0)
    log.close(NOW)
    (tmp_path / "producers.json").write_bytes(b"{")
    log = PartitionLog(tmp_path, NOW)
    assert append(log, [b"x"], producer=9, epoch=0, sequence=0) == 0
    log.close(NOW)


def test_memory_does_not_grow_with_sealed_segments(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, NOW, fsync=False)
    for _ in range(30):
        append(log, [bytes(2000)])
    sealed = log.segments[:-1]
    assert len(sealed) == 29
    assert all(segment._index is None and segment._descriptor is None for segment in sealed)
    log.close(NOW)


def test_an_old_segment_is_rolled_by_age(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, NOW, fsync=False)
    for minute in range(4):
        append(log, [b"x"], now=NOW + minute * 60_000, config=replace(CONFIG, segment_ms=90_000))
    assert [segment.base_offset for segment in log.segments] == [0, 2]
    log.close(NOW)


@dataclass
class Disk:
    """os.pwrite with only so many bytes left."""

    left: int

    def pwrite(self, descriptor: int, data: memoryview, position: int) -> int:
        fits = min(self.left, len(data))
        if not fits:
            raise OSError(28, "No space left on device")
        self.left -= fits
        return REAL_PWRITE(descriptor, data[:fits], position)


REAL_PWRITE = os.pwrite


def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = PartitionLog(tmp_path, NOW)
    append(log, [b"kept"], producer=3, epoch=0, sequence=0)
    disk = Disk(100)
    monkeypatch.setattr("stillhouse.broker.files.os.pwrite", disk.pwrite)
    batch = make_batch([bytes(500)], timestamps=[NOW], producer=3, epoch=0, sequence=1)
    assert refused(log, batch) is Code.KAFKA_STORAGE_ERROR
    assert refused(log, make_batch([bytes(2900)], timestamps=[NOW])) is Code.KAFKA_STORAGE_ERROR, "neither can a new segment begin"
    assert contents(log) == [(0, b"kept")]
    disk.left = 10**9
    assert append(log, [bytes(500)], producer=3, epoch=0, sequence=1) == 1, "the producer's retry is still next"
    log.active.close()
    assert len(contents(PartitionLog(tmp_path, NOW))) == 2
