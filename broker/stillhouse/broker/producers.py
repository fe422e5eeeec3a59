"""Which idempotent producers wrote what to one partition: refuses gaps, recognises repeats. Pure: no files, no clock."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from stillhouse.broker.batch import NO_PRODUCER, Batch
from stillhouse.broker.errors import Code, KafkaError

REMEMBERED = 5  # batches per producer: what clients may have in flight
IDLE_MS = 24 * 3600 * 1000
_SEQUENCES = 1 << 31  # sequence numbers wrap from 2^31-1 to 0


@dataclass
class Producer:
    """One producer's last batches: (first sequence, last sequence, base offset, append time) each."""

    epoch: int
    seen_ms: int
    batches: deque[tuple[int, int, int, int]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))


class Producers:
    """The producers of one partition."""

    def __init__(self) -> None:
        """No producer known."""
        self.known: dict[int, Producer] = {}

    def repeated(self, batch: Batch) -> tuple[int, int] | None:
        """(base offset, append time) that an already stored `batch` got, None if it is new and next.

        Raises KafkaError: INVALID_PRODUCER_EPOCH for a fenced epoch, OUT_OF_ORDER_SEQUENCE_NUMBER for a gap or for a repeat too old
        to be known.
        """
        if batch.producer_id == NO_PRODUCER:
            return None
        producer = self.known.get(batch.producer_id)
        if producer is None:
            return None  # its state may have expired: Kafka takes any first sequence then
        if batch.producer_epoch < producer.epoch:
            raise KafkaError(Code.INVALID_PRODUCER_EPOCH, f"epoch {batch.producer_epoch} is older than {producer.epoch}")
        if batch.producer_epoch > producer.epoch:
            expected = 0
        else:
            last = _last_sequence(batch)
            for first_known, last_known, offset, append_time in producer.batches:
                if (first_known, last_known) == (batch.base_sequence, last):
                    return offset, append_time
            expected = (producer.batches[-1][1] + 1) % _SEQUENCES
        if batch.base_sequence != expected:
            raise KafkaError(Code.OUT_OF_ORDER_SEQUENCE_NUMBER, f"sequence {batch.base_sequence} where {expected} is next")
        return None

    def stored(self, batch: Batch, base_offset: int, append_time: int, now_ms: int) -> None:
        """Remember that `batch` is at `base_offset`; `append_time` is -1 unless the log stamped it."""
        if batch.producer_id == NO_PRODUCER:
            return
        producer = self.known.get(batch.producer_id)
        if producer is None or producer.epoch != batch.producer_epoch:
            producer = self.known[batch.producer_id] = Producer(batch.producer_epoch, now_ms)
        producer.seen_ms = now_ms
        producer.batches.append((batch.base_sequence, _last_sequence(batch), base_offset, append_time))

    def forget_idle(self, now_ms: int) -> None:
        """Drop who has not written for a day, so memory does not grow."""
        for producer_id in [i for i, p in self.known.items() if now_ms - p.seen_ms > IDLE_MS]:
            del self.known[producer_id]

    def snapshot(self) -> dict[str, Any]:
        """The state as JSON values."""
        return {str(i): [p.epoch, p.seen_ms, [list(b) for b in p.batches]] for i, p in self.known.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take a state that `snapshot` gave."""
        for producer_id, (epoch, seen_ms, batches) in state.items():
            producer = self.known[int(producer_id)] = Producer(epoch, seen_ms)
            producer.batches.extend(tuple(b) for b in batches)


def _last_sequence(batch: Batch) -> int:
    return (batch.base_sequence + batch.last_offset_delta) % _SEQUENCES
