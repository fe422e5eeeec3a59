"""Kafka's record batch, format 2: its 61-byte header, what is checked before it is stored, and the few fields a broker rewrites.

    base offset i64, length i32, leader epoch i32, magic i8, crc u32, attributes i16, last offset delta i32,
    first timestamp i64, max timestamp i64, producer id i64, producer epoch i16, base sequence i32, record count i32

The CRC-32C covers everything from the attributes on, so a new base offset or leader epoch leaves it valid.
"""

import struct
from typing import NamedTuple

from aiokafka.errors import CorruptRecordException, UnsupportedCodecError
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.util import calc_crc32c

from stillhouse.broker.errors import Code, KafkaError

HEADER = struct.Struct(">qiibIhiqqqhii")
HEADER_SIZE = HEADER.size
OVERHEAD = 12  # base offset and length are not counted by the length
_PREFIX = struct.Struct(">qii")
_CRC_AT, _CHECKED_FROM, _MAX_TIMESTAMP_AT = 17, 21, 35
_CODEC, _APPEND_TIME, _TRANSACTIONAL, _CONTROL = 0x07, 0x08, 0x10, 0x20
_LAST_CODEC = 4  # zstd
NO_PRODUCER = -1


class Batch(NamedTuple):
    """The header of one batch. Timestamps are ms since 1970."""

    base_offset: int
    length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    first_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    records: int

    @property
    def size(self) -> int:
        """Bytes of the whole batch."""
        return self.length + OVERHEAD

    @property
    def next_offset(self) -> int:
        """The offset after its last record."""
        return self.base_offset + self.last_offset_delta + 1


def read_header(data: bytes | memoryview, at: int = 0) -> Batch | None:
    """The header at `at`, or None where no whole header of a plausible format-2 batch is."""
    if len(data) - at < HEADER_SIZE:
        return None
    batch = Batch(*HEADER.unpack_from(data, at))
    plausible = batch.magic == 2 and batch.length >= HEADER_SIZE - OVERHEAD and batch.base_offset >= 0 and batch.last_offset_delta >= 0
    return batch if plausible else None


def crc_matches(batch: Batch, data: bytes | memoryview) -> bool:
    """Whether `data`, the whole batch, has the checksum that its header says."""
    return len(data) == batch.size and int(calc_crc32c(bytes(data[_CHECKED_FROM:]))) == batch.crc


def check_produced(data: bytes | memoryview) -> Batch:
    """The header of the one batch of a produce request for one partition.

    Raises KafkaError as Kafka does: not format 2, not exactly one batch, damaged, empty, transactional, or an unknown codec.
    """
    if len(data) > 16 and data[16] != 2:
        raise KafkaError(Code.UNSUPPORTED_FOR_MESSAGE_FORMAT, "only record batches of format 2 are stored")
    batch = read_header(data)
    if batch is None:
        raise KafkaError(Code.CORRUPT_MESSAGE, "no whole record batch")
    if batch.size < len(data):
        raise KafkaError(Code.INVALID_RECORD, "more than one record batch for a partition")
    if not crc_matches(batch, data):
        raise KafkaError(Code.CORRUPT_MESSAGE, "the batch's checksum does not match its bytes")
    if batch.records < 1 or batch.records != batch.last_offset_delta + 1:
        raise KafkaError(Code.INVALID_RECORD, f"{batch.records} records over {batch.last_offset_delta + 1} offsets")
    if batch.attributes & (_TRANSACTIONAL | _CONTROL):
        raise KafkaError(Code.INVALID_TXN_STATE, "this broker has no transactions")
    if batch.attributes & _CODEC > _LAST_CODEC:
        raise KafkaError(Code.INVALID_RECORD, "unknown compression")
    if batch.attributes & _APPEND_TIME:
        raise KafkaError(Code.INVALID_TIMESTAMP, "the timestamp type is the broker's to set")
    return batch


def stamped(data: bytes | memoryview, base_offset: int, append_time: int | None) -> bytearray:
    """A copy of a batch as it is stored: at `base_offset`, leader epoch 0, and with `append_time` (ms) as its LogAppendTime if given."""
    stored = bytearray(data)
    length = int.from_bytes(stored[8:12], "big")
    _PREFIX.pack_into(stored, 0, base_offset, length, 0)
    if append_time is not None:
        stored[_CHECKED_FROM + 1] |= _APPEND_TIME
        struct.pack_into(">q", stored, _MAX_TIMESTAMP_AT, append_time)
        struct.pack_into(">I", stored, _CRC_AT, calc_crc32c(bytes(stored[_CHECKED_FROM:])))
    return stored


def first_at_or_after(data: bytes, timestamp: int) -> tuple[int, int] | None:
    """(offset, timestamp) of the first record of a batch that is not older than `timestamp`, None if all are.

    Where this Python can't decompress the batch, its first record stands in: never too late, at most one batch too early.
    """
    batch = read_header(data)
    if batch is None or batch.max_timestamp < timestamp:
        return None
    if batch.attributes & _APPEND_TIME:
        return batch.base_offset, batch.max_timestamp
    try:
        for record in DefaultRecordBatch(data):
            if record.timestamp >= timestamp:
                return record.offset, record.timestamp
    except (UnsupportedCodecError, RuntimeError, CorruptRecordException):
        return batch.base_offset, batch.first_timestamp
    return None
