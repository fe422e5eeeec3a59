"""What a worker says of itself: gauges, health, readiness."""

from collections.abc import Callable, Mapping
from typing import Any

from stillhouse.streams.ingest.consumer import Member
from stillhouse.streams.ingest.decode import Decoded
from stillhouse.streams.ingest.flush import Waiter
from stillhouse.streams.ingest.open import OpenTrajectories
from stillhouse.streams.ingest.partitions import Partitions
from stillhouse.streams.instruments import Instruments

Answer = tuple[bool, Mapping[str, Any]]


MOST_LABELS = 100
OTHER = "other"


class Labels:
    """Values of a label that others choose: the first hundred by name, all later ones as `other`; each would be a series for ever."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        """The value to count under."""
        if value not in self._known:
            if len(self._known) >= MOST_LABELS:
                return OTHER
            self._known.add(value)
        return value


class Status:
    """Looks at the worker's parts; changes none.

    Args:
        member: the group member.
        partitions: the books.
        opened: the unflushed events.
        waiter: knows whether something is away.
        instruments: the gauges and counters.
        clock: seconds, monotonic.
        patience: seconds after which a loop that does not turn is not healthy.
    """

    def __init__(
        self,
        member: Member,
        partitions: Partitions,
        opened: OpenTrajectories,
        waiter: Waiter,
        instruments: Instruments,
        clock: Callable[[], float],
        patience: float,
    ) -> None:
        self._member, self._partitions, self._open, self._waiter = member, partitions, opened, waiter
        self._instruments, self._clock, self._patience = instruments, clock, patience
        self._turned = clock()
        self._sources, self._reasons = Labels(), Labels()

    def count(self, decoded: Decoded) -> None:
        """Count what became of a batch."""
        count = self._instruments.count
        for source, number in decoded.read.items():
            count("stillhouse_ingest_events_total", number, source=self._sources(source))
        count("stillhouse_ingest_bytes_total", sum(arrived.size for arrived in decoded.events))
        for one in decoded.rejected:
            count("stillhouse_ingest_dlq_total", source=self._sources(one.source), reason=self._reasons(one.reason))
        for reason, number in decoded.dropped.items():
            count("stillhouse_ingest_client_dropped_total", number, reason=self._reasons(reason))

    def turn(self) -> None:
        """Set the gauges; the loop turns."""
        self._turned = self._clock()
        gauge = self._instruments.set
        gauge("stillhouse_ingest_open_trajectories", len(self._open))
        gauge("stillhouse_ingest_open_bytes", self._open.bytes)
        gauge("stillhouse_ingest_stopped_partitions", len(self._partitions.stopped))
        for one in self._partitions:
            label = str(one.number)
            gauge("stillhouse_ingest_position", one.position, partition=label)
            gauge("stillhouse_ingest_lag", one.end - one.position, partition=label)
            gauge("stillhouse_ingest_replay_debt", one.position - max(0, one.committed), partition=label)
            gauge("stillhouse_ingest_watermark_seconds", one.watermark / 1e6, partition=label)

    def lost(self, partition: int) -> None:
        """Somebody else reads it now: its gauges are theirs."""
        for name in ("position", "lag", "replay_debt", "watermark_seconds"):
            self._instruments.remove(f"stillhouse_ingest_{name}", str(partition))

    def healthy(self) -> Answer:
        """Whether the loop turns."""
        idle = self._clock() - self._turned
        return idle < self._patience, {"seconds_since_turn": round(idle, 1)}

    def ready(self) -> Answer:
        """Whether records are read and stored."""
        stopped = self._partitions.stopped
        return self._member.joined and not self._waiter.waiting and not stopped, {
            "joined": self._member.joined,
            "waiting": self._waiter.waiting,
            "stopped_partitions": stopped,
            "open": len(self._open),
            "positions": {str(one.number): one.position for one in self._partitions},
            "committed": {str(one.number): one.committed for one in self._partitions},
            "lag": {str(one.number): one.end - one.position for one in self._partitions},
        }
