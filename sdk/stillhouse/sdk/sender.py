"""From parcels to acknowledged records: the producer, what is in flight, and the spool behind it.

A parcel is produced at once. If no acknowledgement came within `spool_after_s` of its emit it is also written to the spool, in one
transaction with all the others that are due, and deleted there when the acknowledgement comes: with a healthy broker nothing is
ever written. What exceeds the in-flight bound goes to the spool alone and is read back as room appears.
"""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from stillhouse.schemas.errors import PermanentError
from stillhouse.sdk.limits import Limits
from stillhouse.sdk.spool import Slot, Spool
from stillhouse.sdk.spool_folder import Parcel, SpoolFolder
from stillhouse.sdk.stats import Counters, Refusal

_log = logging.getLogger("stillhouse.sdk")
_kafka_log = logging.getLogger("stillhouse.sdk.kafka")
_READ_AT_ONCE = 500

# The record itself is what the broker does not take; everything else may be repaired outside and is tried again.
_REFUSED = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.INVALID_TIMESTAMP,
        KafkaError.POLICY_VIOLATION,
    }
)


@dataclass(slots=True, eq=False)
class _Flight:
    """One parcel with the Kafka library. Once in the spool, the parcel itself is let go."""

    since: float
    size: int
    parcel: Parcel | None
    slot: Slot | None = None
    landed: bool = False


class _Quiet:
    """The Kafka library's log at debug level: it repeats itself at error level for as long as a broker is away, and we say that once."""

    def log(self, _level: int, message: str, *args: Any) -> None:
        _kafka_log.debug(message, *args)


class Sender:
    """For the background thread alone.

    Args:
        config: the producer's configuration, by librdkafka's names.
        spool: what must survive the process.
        limits: the bounds.
        counters: what to count on.
        refused: called with a parcel that the broker will never take.
        clock: monotonic seconds.

    Raises:
        PermanentError: the configuration is refused by the Kafka library.
    """

    def __init__(
        self,
        config: dict[str, Any],
        spool: Spool,
        limits: Limits,
        counters: Counters,
        refused: Callable[[Parcel, Refusal], None],
        clock: Callable[[], float],
    ) -> None:
        self._config = config | {"error_cb": self._on_error, "logger": _Quiet()}
        self._spool, self._limits, self._counters, self._refused, self._clock = spool, limits, counters, refused, clock
        self._flights = 0
        self._bytes = 0
        self._slots: dict[Slot, _Flight] = {}
        self._exposed: deque[_Flight] = deque()  # in flight and on no disk, in order of emit
        self._overflow: list[Parcel] = []  # for the spool alone, with the next write
        self._results: list[tuple[_Flight, Any]] = []
        self._cursor: dict[SpoolFolder, int] = {}
        self._resume_at = self._write_at = 0.0
        self._away = self._fatal = False
        self.full = False  # neither the library nor the spool had room for the last events
        self._producer = self._new_producer()

    @property
    def left(self) -> int:
        """Events that are not acknowledged, on disk or not."""
        return self._spool.rows + len(self._overflow) + self._flights - len(self._slots)

    @property
    def in_flight(self) -> int:
        """Events that the Kafka library has."""
        return self._flights

    def kept(self, before: float) -> bool:
        """Whether all that was emitted before a moment is acknowledged or on disk."""
        while self._exposed and self._exposed[0].landed:
            self._exposed.popleft()
        return not (self.full or self._overflow or self._due(before))

    def send(self, parcel: Parcel, since: float) -> None:
        """Produce, or keep for the spool when too much is in flight."""
        if not self._room(parcel.size) or not self._produce(parcel, flight := _Flight(since, parcel.size, parcel)):
            self._overflow.append(parcel)
        elif not flight.landed:
            self._exposed.append(flight)

    def announce(self, parcel: Parcel, done: Callable[[], None]) -> None:
        """Send once and forget, calling `done` when it is acknowledged: nothing depends on it, and it is not counted."""

        def delivered(error: Any, _message: Any) -> None:
            if error is None:
                done()
            else:
                _log.debug("%s did not take our schema: %s", parcel.topic, error.name())

        self._producer.produce(parcel.topic, value=parcel.value, key=parcel.key, on_delivery=delivered)

    def turn(self, wait: float) -> None:
        """One round: acknowledgements (waiting up to `wait` seconds for the first), then disk, then what lies in the spool."""
        self._producer.poll(wait)
        self._settle()
        self.protect(self._clock() - self._limits.spool_after_s)
        self._spool.sweep()
        self._refill()

    def protect(self, before: float) -> None:
        """Write to disk what was emitted before a moment and is not acknowledged."""
        while self._exposed and self._exposed[0].landed:
            self._exposed.popleft()
        due = [f for f in self._exposed if f.since <= before and not f.landed] if self._due(before) else []
        if due and self._clock() < self._write_at and not self._overflow:
            return
        if not due and not self._overflow:
            return
        slots, why = self._spool.write([f.parcel for f in due if f.parcel is not None] + self._overflow)
        self._counters.spooled += len(slots)
        for flight, slot in zip(due, slots, strict=False):
            flight.slot, flight.parcel = slot, None
            self._slots[slot] = flight
        self._exposed = deque(f for f in self._exposed if f.slot is None and not f.landed)
        lost = self._overflow[max(0, len(slots) - len(due)) :]
        self._overflow = []
        self.full = why is not None
        if why is not None:
            self._write_at = self._clock() + self._limits.retry_after_s
            self._give_up(len(lost), why)

    def close(self) -> int:
        """Write down what is not acknowledged and stop; gives how many events stay in the spool."""
        self._write_at = 0.0
        self.protect(float("inf"))
        self._producer.purge()
        self._producer.poll(0)
        why = Refusal.DISK_FULL if self._spool.broken else Refusal.SPOOL_FULL
        self._give_up(sum(not f.landed for f in self._exposed), why)
        del self._producer  # waits for the library's threads
        return self._spool.close()

    def _due(self, before: float) -> bool:
        return bool(self._exposed) and self._exposed[0].since <= before

    def _give_up(self, count: int, why: Refusal) -> None:
        if count and self._counters.refuse(why, count):
            _log.error("events are lost: the broker is away and the spool takes no more (%s)", why)

    def _room(self, size: int) -> bool:
        return self._flights < self._limits.in_flight_events and self._bytes + size <= self._limits.in_flight_bytes

    def _produce(self, parcel: Parcel, flight: _Flight) -> bool:
        """False when the library's own queue is full. A record it refuses at once has landed."""
        try:
            self._producer.produce(
                parcel.topic,
                value=parcel.value,
                key=parcel.key,
                headers=parcel.headers,
                on_delivery=lambda error, _message: self._results.append((flight, error)),
            )
        except BufferError:
            return False
        except KafkaException as error:
            if error.args[0].code() not in _REFUSED:
                return False
            flight.landed = True
            self._reject(flight, parcel, Refusal.TOO_LARGE)
            return True
        self._flights += 1
        self._bytes += parcel.size
        return True

    def _settle(self) -> None:
        results, self._results = self._results, []
        for flight, error in results:
            flight.landed = True
            self._flights -= 1
            self._bytes -= flight.size
            if flight.slot is not None:
                self._slots.pop(flight.slot, None)
            if error is None:
                self._acknowledge(flight)
            elif error.code() in _REFUSED:
                self._reject(flight, flight.parcel, Refusal.BROKER_REFUSED)
            else:
                self._put_back(flight, error)
        if self._fatal:
            self._restart()

    def _acknowledge(self, flight: _Flight) -> None:
        self._counters.sent += 1
        if flight.slot is not None:
            self._spool.acknowledged(flight.slot)
        if self._away:
            self._away = False
            _log.info("the broker is back: %d events wait in the spool", self._spool.rows)

    def _reject(self, flight: _Flight, parcel: Parcel | None, why: Refusal) -> None:
        if flight.slot is not None:
            parcel = self._spool.fetch(flight.slot)
            self._spool.acknowledged(flight.slot)
        if parcel is not None:
            self._refused(parcel, why)

    def _put_back(self, flight: _Flight, error: Any) -> None:
        """Not the record's fault: it goes to (or stays in) the spool and is read back after a pause."""
        if self._clock() >= self._resume_at:
            _log.warning("events could not be sent and are tried again: %s", error.name())
        self._resume_at = self._clock() + self._limits.retry_after_s
        if flight.slot is None and flight.parcel is not None:
            self._overflow.append(flight.parcel)

    def _refill(self) -> None:
        """Produce what lies in the spool and is not in flight."""
        if self._spool.rows <= len(self._slots) or self._clock() < self._resume_at or not self._room(0):
            return
        read = 0
        for slot, parcel in self._spool.read(self._cursor, _READ_AT_ONCE):
            read += 1
            if slot in self._slots:
                continue
            flight = _Flight(0.0, parcel.size, None, slot)
            if not self._room(parcel.size) or not self._produce(parcel, flight):
                self._cursor[slot.folder] = slot.number - 1
                return
            if not flight.landed:
                self._slots[slot] = flight
        if not read:
            self._cursor.clear()  # from the start again: what was put back lies behind

    def _on_error(self, error: Any) -> None:
        if error.fatal():
            self._fatal = True
        if error.code() == KafkaError._ALL_BROKERS_DOWN and not self._away:
            self._away = True
            _log.warning("no broker answers: events go to the spool until one does")

    def _restart(self) -> None:
        """A fatal error ends a producer for good: a new one takes over everything in flight."""
        _log.warning("the Kafka producer failed for good and is replaced")
        self._fatal = False
        self._producer.purge()
        self._producer.poll(0)
        self._producer = self._new_producer()
        self._settle()

    def _new_producer(self) -> Any:
        try:
            return Producer(self._config)
        except (KafkaException, ValueError, TypeError) as error:
            raise PermanentError(f"the Kafka library refuses the settings: {error}", where="[kafka]") from error
