"""How much a client may hold and how long it may wait, each with what depends on it."""

import msgspec

MIB = 1024 * 1024


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one client. The defaults keep the promise of docs/sdk.md: on disk or acknowledged within a second of emit.

    Args:
        queue_events: events between the agent and the background thread; more are refused. The thread must be able to take a full
            queue within the second.
        queue_bytes: the same in bytes.
        in_flight_events: events with the Kafka library, unacknowledged; more wait in the spool.
        in_flight_bytes: the same in bytes.
        spool_bytes: what this process may have on disk; more are refused.
        rejected_bytes: what the folder of rejected events may hold; the oldest go.
        spool_after_s: an event without an acknowledgement this long after emit is written to the spool.
        retry_after_s: pause after a send or a write to the spool failed.
        report_every_s: least time between two `ClientReport`s; the last one goes out at close.
    """

    queue_events: int = 4_000
    queue_bytes: int = 16 * MIB
    in_flight_events: int = 10_000
    in_flight_bytes: int = 32 * MIB
    spool_bytes: int = 1024 * MIB
    rejected_bytes: int = 64 * MIB
    spool_after_s: float = 0.2
    retry_after_s: float = 1.0
    report_every_s: float = 10.0
