"""From a rejected record to its dead letter, of which the topic takes any. Pure.

A record may be larger than its topic's limit, which counts compressed bytes: its letter then holds the beginning of its value,
without the original headers if these are what is large.
"""

from collections.abc import Sequence
from typing import NamedTuple

from stillhouse.schemas.topics import DLQ_MAX_BYTES
from stillhouse.streams import dlq
from stillhouse.streams.ingest.records import Record, Rejected

ROOM = DLQ_MAX_BYTES - 2048
"""Bytes of key, value and headers; the rest is for the batch around them."""

HEADERS_ROOM = 64 * 1024
_PER_HEADER = 16  # lengths, generously


class Letter(NamedTuple):
    """One dead letter. `cut` says that it does not hold all of its record."""

    key: bytes
    value: bytes | None
    headers: Sequence[dlq.Header]
    cut: bool = False


def letter_of(rejected: Rejected) -> Letter:
    """The dead letter of a record, its value cut at the end if the topic would not take it."""
    record = rejected.record
    key, headers = dlq.key_of(record.topic, record.partition, record.offset).encode(), _headers(rejected, rejected.detail)
    size, left = len(record.value or b""), ROOM - len(key) - _size(headers)
    if size <= left:
        return Letter(key, record.value, headers)
    detail = f"cut: the record had {size} bytes of value and {_size(record.headers)} of headers. {rejected.detail}"
    headers = _headers(rejected, detail)
    if _size(headers) > HEADERS_ROOM:
        headers = _headers(rejected, detail, bare=True)
    return Letter(key, (record.value or b"")[: ROOM - len(key) - _size(headers)], headers, cut=True)


def _headers(rejected: Rejected, detail: str, *, bare: bool = False) -> list[dlq.Header]:
    record: Record = rejected.record
    source_key = None if bare and len(record.key or b"") > HEADERS_ROOM // 2 else record.key
    return dlq.headers_of(
        [] if bare else record.headers,
        stage=rejected.stage,
        reason=rejected.reason,
        detail=detail,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        key=source_key,
    )


def _size(headers: Sequence[dlq.Header]) -> int:
    return sum(len(name.encode()) + len(value or b"") + _PER_HEADER for name, value in headers)
