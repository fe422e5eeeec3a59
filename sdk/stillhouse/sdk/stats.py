"""What a client did, in numbers: by reason, never by content."""

import threading
from collections import Counter
from enum import StrEnum

import msgspec


class Refusal(StrEnum):
    """Why an event was not taken or not sent. The values are the reasons of a `ClientReport`."""

    BAD_INPUT = "bad_input"  # not something an event can be made of
    QUEUE_FULL = "queue_full"  # the agent emitted faster than the thread could take
    CLOSED = "closed"  # emitted after close()
    AFTER_END = "after_end"  # a second end() of one trajectory
    GATEWAY_STEPS = "gateway_steps"  # a step of a trajectory whose steps the gateway sends
    REDACTION_FAILED = "redaction_failed"  # a rule raised: never sent unredacted
    SECRET_IN_ID = "secret_in_id"  # an id that holds a secret can be neither sent nor replaced
    TOO_LARGE = "too_large"  # more than a record may hold
    BROKER_REFUSED = "broker_refused"  # the broker will never take this record
    SPOOL_FULL = "spool_full"  # the broker is away and the spool holds all it may
    DISK_FULL = "disk_full"  # the broker is away and the disk takes no more
    INTERNAL = "internal"  # a bug of ours; the log names the place


class ClientStats(msgspec.Struct, frozen=True, kw_only=True):
    """A moment's numbers of one client in this process.

    Args:
        emitted: events that the queue took.
        sent: events that the broker acknowledged, adopted ones included.
        spooled: events that were written to disk because no acknowledgement came in time.
        waiting: events on their way: queued, in flight or in the spool.
        adopted: events found in spools that ended processes left.
        rejected: events given up, by reason (`Refusal`).
        redacted: secrets replaced, by rule.
    """

    emitted: int = 0
    sent: int = 0
    spooled: int = 0
    waiting: int = 0
    adopted: int = 0
    rejected: dict[str, int] = {}
    redacted: dict[str, int] = {}


class CloseReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a client ended.

    Args:
        sent: events acknowledged in the client's life.
        left: events that stay in the spool; the next start sends them.
        rejected: events given up in the client's life, by reason.
    """

    sent: int = 0
    left: int = 0
    rejected: dict[str, int] = {}

    @property
    def complete(self) -> bool:
        """Everything that was emitted is with the broker."""
        return not self.left and not self.rejected


class Counters:
    """Counts by reason, from any thread. The lock is reentrant: a signal handler may emit."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._rejected: Counter[str] = Counter()
        self._redacted: Counter[str] = Counter()
        self.sent = self.spooled = self.adopted = 0  # written by the background thread only

    def refuse(self, reason: Refusal, count: int = 1) -> bool:
        """Count; True when it is the first of its reason (worth a log line)."""
        with self._lock:
            first = reason.value not in self._rejected
            self._rejected[reason.value] += count
        return first

    def redact(self, found: Counter[str]) -> None:
        """Count replaced secrets by rule."""
        with self._lock:
            self._redacted.update(found)

    def rejected(self) -> dict[str, int]:
        """A copy, by reason."""
        with self._lock:
            return dict(self._rejected)

    def redacted(self) -> dict[str, int]:
        """A copy, by rule."""
        with self._lock:
            return dict(self._redacted)
