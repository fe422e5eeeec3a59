"""Section `[ingest]`."""

from typing import Annotated, Literal

import msgspec

from stillhouse.schemas.topics import MIB

Seconds = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class IngestSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How ingest reads, keeps and flushes. Times are seconds, sizes bytes.

    `park_after` is the one timer of a trajectory: its unflushed events wait no longer for the rest. `flush_rows`, `flush_bytes`
    and `flush_every` bound one flush of what is complete; of all workers on one store, `flushes_at_once` flush at a time.
    `open_bytes` bounds the memory of unflushed events, `source_open_bytes` that of one (tenant, way in); over it the oldest are
    flushed as they are.

    `first_start` is where a group without offsets begins; `lost_offsets` what happens when retention has deleted what was
    not read yet: stop and say so, or go on at the oldest record. More than `dlq_ratio` of at least `dlq_minimum` undecodable
    records of one source within `dlq_window` send that source to the DLQ unparsed.

    `orphan_age` is when a chunk that no row names was left by a crash. A flush makes a chunk that it finds young again only after
    an hour (`sink.FRESH`), and then has another hour for the row that names it: below two hours, a sweep could delete what a slow
    flush is about to name.
    """

    group: str = "stillhouse-ingest"
    park_after: Seconds = 300.0
    flush_rows: Count = 1000
    flush_bytes: Count = 64 * MIB
    flush_every: Seconds = 5.0
    flushes_at_once: Count = 8
    open_bytes: Count = 256 * MIB
    source_open_bytes: Count = 128 * MIB
    session_timeout: Seconds = 10.0
    max_poll_interval: Seconds = 300.0
    fetch_records: Count = 2000
    first_start: Literal["earliest", "latest"] = "earliest"
    lost_offsets: Literal["stop", "earliest"] = "stop"
    dlq_ratio: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5
    dlq_minimum: Count = 100
    dlq_window: Seconds = 60.0
    retry_wait: Seconds = 1.0
    slow_request_ms: Seconds = 10_000.0
    maintenance_every: Seconds = 300.0
    maintenance_flush_p95: Seconds = 1.0
    orphan_age: Annotated[float, msgspec.Meta(ge=7200)] = 86_400.0
    keep_versions: Seconds = 3600.0
