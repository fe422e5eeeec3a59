"""What the steps of ingest hand to each other."""

from typing import NamedTuple, Protocol

from stillhouse.schemas.event_set import Member

UNATTRIBUTED = ""
"""The source of a record whose headers name none."""


class Record(Protocol):
    """A record as a Kafka client gives it (aiokafka's `ConsumerRecord` is one). `timestamp` is milliseconds, LogAppendTime.

    A header's value may be null.
    """

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


class Arrived(NamedTuple):
    """One decoded event with where it came from. `size` is bytes of its value, `appended_at` microseconds since the epoch."""

    key: str
    member: Member
    partition: int
    offset: int
    size: int
    source: str
    appended_at: int


class Rejected(NamedTuple):
    """One record for the DLQ. `stage` is the step that refused it."""

    record: Record
    source: str
    stage: str
    reason: str
    detail: str


def source_of(record: Record) -> str:
    """The (tenant, way in) that limits are kept by: the header `ce_source`, or `UNATTRIBUTED`."""
    for name, value in record.headers:
        if name == "ce_source" and value is not None:
            return value.decode("utf-8", "replace")
    return UNATTRIBUTED
