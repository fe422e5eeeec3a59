"""Step 2: bytes to events. What cannot be decoded is for the DLQ; what cannot be decoded *yet* is waited for."""

from collections import Counter
from collections.abc import Callable, Iterable

from stillhouse.schemas import codec
from stillhouse.schemas.event_set import member
from stillhouse.schemas.events import AgentEvent, ClientReport
from stillhouse.streams.ingest.limits import RatioLimit
from stillhouse.streams.ingest.quick import QuickReader
from stillhouse.streams.ingest.records import UNATTRIBUTED, Arrived, Record, Rejected, source_of

UNKNOWN_SCHEMA = ("unknown_fingerprint", "unknown_schema_id")
"""Reasons that may pass by themselves: outside the ratio limit, retried when the schema becomes known."""

RATIO, INVALID = "ratio_limit", "invalid"


class Decoded:
    """What became of a batch of records."""

    def __init__(self) -> None:
        self.events: list[Arrived] = []
        self.rejected: list[Rejected] = []
        self.dropped: Counter[str] = Counter()
        self.read: Counter[str] = Counter()
        self.closed: list[str] = []


class Decoder:
    """Decodes batches and keeps the limits.

    Args:
        resolver: knows schemas that are none of our releases.
        limit: how much of a source may be bad.
        clock: seconds, monotonic.
    """

    def __init__(self, resolver: codec.SchemaResolver | None, limit: RatioLimit, clock: Callable[[], float]) -> None:
        self._resolver, self._limit, self._clock = resolver, limit, clock
        self._quick = QuickReader().read

    def look_up(self, records: Iterable[Record]) -> None:
        """Ask the registry for the ids of a batch, so that decoding it waits for nothing. Blocks: for a thread.

        Raises:
            SchemaPendingError: the registry is away.
        """
        if self._resolver is not None:
            for schema_id in {found for record in records if (found := codec.schema_id_of(record.value or b"")) is not None}:
                self._resolver.by_id(schema_id)

    def batch(self, records: Iterable[Record]) -> Decoded:
        """Decode records of one partition, in order.

        Raises:
            SchemaPendingError: a registry is away: nothing of the batch counts, it can be given again.
        """
        found, now = Decoded(), self._clock()
        closed: dict[str, bool] = {}
        bad: Counter[str] = Counter()
        for record in records:
            source = source_of(record)
            shut = closed.get(source)
            if shut is None:
                shut = closed[source] = source != UNATTRIBUTED and self._limit.closed(source, now)
            found.read[source] += 1
            if shut:
                found.rejected.append(Rejected(record, source, "decode", RATIO, "too much of this source cannot be decoded"))
                continue
            refused = self._one(record, source, found)
            if refused is not None:
                found.rejected.append(refused)
                if refused.reason not in UNKNOWN_SCHEMA:
                    bad[source] += 1
        for source, total in found.read.items():
            if not closed[source] and self._limit.count(source, total - bad[source], bad[source], now):
                found.closed.append(source)
        return found

    def _one(self, record: Record, source: str, found: Decoded) -> Rejected | None:
        """Decode one; what it raises is its own fault and no other record's: one that raised out of here would stop its partition."""
        try:
            self._event(record, source, found)
        except codec.UndecodableError as error:
            return Rejected(record, source, "decode", error.reason, error.what)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            return Rejected(record, source, "decode", INVALID, f"not a storable event: {error!r}")
        return None

    def _event(self, record: Record, source: str, found: Decoded) -> None:
        value = record.value or b""
        quick = self._quick(value, record.key)
        if quick is not None:
            key, event = quick
        else:
            event = codec.decode(value, AgentEvent, self._resolver)
            if type(event.body) is ClientReport:
                found.dropped.update(event.body.dropped)
                return
            key = event.key
        arrived = Arrived(key, member(event), record.partition, record.offset, len(value), source, record.timestamp * 1000)
        found.events.append(arrived)
