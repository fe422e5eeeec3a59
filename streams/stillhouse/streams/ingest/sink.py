"""Steps 4 and 5: read the stored rows and chunks, union, fold, score; insert chunks, then compare-and-set the rows.

Knows the store and no Kafka. What it is interrupted in can be done again: chunks are inserted if absent, rows change only
from what they were folded on, and a union only adds. Failures other than the store's absence are one trajectory's: bisected.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from stillhouse.schemas.errors import PermanentError, RetryableError, StillhouseError, UnreachableError
from stillhouse.schemas.event_set import Member, pack
from stillhouse.schemas.fold import ERASED, fold_set
from stillhouse.schemas.keys import split_key
from stillhouse.schemas.trajectory import Status
from stillhouse.sdk.store import Store
from stillhouse.streams.ingest.erasing import bury, delete_chunks, tombstone_of
from stillhouse.streams.ingest.open import Entry
from stillhouse.streams.ingest.rows import Read, Row, row_of, unfolded
from stillhouse.streams.ingest.slow import EVERYWHERE_ALIKE, SlowLimits
from stillhouse.streams.ingest.steps import Reached, unwatched

ROUNDS = 50
"""How often a row may change under a flush before the store counts as away."""

FRESH = 3_600_000_000
"""Microseconds that an orphaned chunk is safe from any sweep."""

Erased = Callable[[str, str], bool]


@dataclass
class Unit:
    """New events of one trajectory, and where they were read."""

    key: str
    members: dict[bytes, Member]
    read: Read


@dataclass
class Stored:
    """What a flush left of its trajectories: the row that holds now, and whether this flush wrote it."""

    written: list[Row] = field(default_factory=list)
    unchanged: list[Row] = field(default_factory=list)
    conflicts: int = 0

    @property
    def rows(self) -> list[Row]:
        """All rows, for the facts: also those of which nothing was new."""
        return self.written + self.unchanged


@dataclass
class _Change:
    """A row to be written, with the chunk it needs."""

    row: Row
    chunk: Row | None


def units_of(entries: Iterable[Entry]) -> list[Unit]:
    """Entries as units: one for each trajectory, in whatever partitions it was read."""
    units: dict[str, Unit] = {}
    for entry in entries:
        members = {arrived.member.digest: arrived.member for arrived in entry.events}
        read = Read(entry.partition, entry.first_offset, entry.events[-1].offset, max([arrived.appended_at for arrived in entry.events]))
        known = units.get(entry.key)
        if known is None:
            units[entry.key] = Unit(entry.key, members, read)
        else:
            known.members |= members
    return list(units.values())


class Sink:
    """Writes units to the store.

    Args:
        store: the store.
        now: microseconds since the epoch, for bookkeeping columns only.
        erased: says of a tenant and subject whether they are to be forgotten.
        slow: requests over it count as slow.
        reached: the hook at `read`, `chunks` and `rows`.
    """

    def __init__(
        self,
        store: Store,
        now: Callable[[], int],
        *,
        erased: Erased | None = None,
        slow: SlowLimits = EVERYWHERE_ALIKE,
        reached: Reached = unwatched,
    ) -> None:
        self._store, self._now, self._slow, self._reached = store, now, slow, reached
        self._erased: Erased = erased or (lambda tenant, subject: False)

    def write(self, units: list[Unit]) -> Stored:
        """Store all units, each whole or not at all.

        Raises:
            RetryableError: the store is away; the same call may be made again.
            PermanentError: it refuses even the row that says so.
        """
        done = Stored()
        self._bisect(units, done)
        return done

    def _bisect(self, units: list[Unit], done: Stored) -> None:
        try:
            self._rounds(units, done, None)
        except RetryableError:
            raise
        except (StillhouseError, ValueError, TypeError, RecursionError, LookupError, AttributeError, ArithmeticError) as error:
            if len(units) == 1:
                self._rounds(units, done, f"{type(error).__name__}: {error}"[:300])
                return
            middle = len(units) // 2
            self._bisect(units[:middle], done)
            self._bisect(units[middle:], done)

    def _rounds(self, units: list[Unit], done: Stored, failure: str | None) -> None:
        """Read, fold and compare-and-set until every row is what its events say."""
        left = units
        for _ in range(ROUNDS):
            changes = self._read(left, done, failure)
            self._reached("read")
            chunks = [change.chunk for change in changes if change.chunk is not None]
            self._insert_chunks(chunks)
            self._reached("chunks")
            rows = [change.row for change in changes]
            changed = self._store.compare_and_set("trajectories", rows, insert=True)
            self._reached("rows")
            won = rows if changed == len(rows) else self._won(rows)
            delete_chunks(self._store, [row["key"] for row in won if row["content"] == ERASED])
            done.written.extend(self._forgotten(won))
            if len(won) == len(rows):
                return
            done.conflicts += len(rows) - len(won)
            keys = {row["key"] for row in rows} - {row["key"] for row in won}
            left = [unit for unit in left if unit.key in keys]
        raise UnreachableError("rows keep changing under this worker", where=left[0].key, fix="Are there more workers than partitions?")

    def _forgotten(self, rows: list[Row]) -> list[Row]:
        """The rows; tombstones of those whose erasure came after the fold, for it may have been carried out before they were there."""
        late = [row["key"] for row in rows if row["content"] != ERASED and self._to_forget(row)]
        if not late:
            return rows
        bury(self._store, [row for row in rows if row["key"] in late], self._now())
        return [tombstone_of(row, self._now()) if row["key"] in late else row for row in rows]

    def _to_forget(self, row: Row) -> bool:
        return row["subject"] is not None and self._erased(row["tenant"], row["subject"])

    def _won(self, rows: list[Row]) -> list[Row]:
        """Those of the rows that are in the table now: stored by us, or the same by somebody else."""
        stored = self._store.by_key("trajectories", [row["key"] for row in rows], ("key", "content", "status"))
        return [row for row in rows if all(stored.get(row["key"], {}).get(name) == row[name] for name in ("content", "status"))]

    def _read(self, units: list[Unit], done: Stored, failure: str | None) -> list[_Change]:
        stored = self._store.by_key("trajectories", [unit.key for unit in units])
        fixed = {key: row["chunks"] for key, row in stored.items() if row["content"] != ERASED}
        events = self._events(fixed, failure) if fixed else {}
        changes = []
        for unit in units:
            row = stored.get(unit.key)
            if row is not None and row["content"] == ERASED:
                done.unchanged.append(row)
                continue
            known = events.get(unit.key, {})
            new = {digest: one for digest, one in unit.members.items() if digest not in known}
            if row is not None and not new and row["status"] != Status.FAILED.value and not self._to_forget(row):
                done.unchanged.append(row)
            else:
                changes.append(self._change(unit, row, known, new, failure))
        return changes

    def _events(self, chunks: dict[str, list[str]], failure: str | None) -> dict[str, dict[bytes, Member]]:
        try:
            return self._store.event_sets(chunks)
        except PermanentError:
            if failure is None:
                raise
            return {}  # the failure that is about to be stored

    def _change(self, unit: Unit, row: Row | None, known: dict[bytes, Member], new: dict[bytes, Member], failure: str | None) -> _Change:
        stored_at, chunks = self._now(), list(row["chunks"]) if row else []
        tenant, _ = split_key(unit.key)
        members = known | new if known else new
        if failure is None:
            trajectory = fold_set(members, erased=lambda subject: self._erased(tenant, subject))
        else:
            trajectory = unfolded(unit.key, members, row, erased=lambda subject: self._erased(tenant, subject))
        if trajectory.content == ERASED:
            return _Change(
                row_of(trajectory, [], row, unit.read, slow_ms=self._slow.of(trajectory.assignment), stored_at=stored_at, reason=ERASED),
                None,
            )
        chunk = None
        if new:
            name, data = pack(unit.key, new.values())
            chunk = {"key": name, "trajectory": unit.key, "events": data, "count": len(new), "stored_at": stored_at}
            chunks = [*(c for c in chunks if c != name), name]
        made = row_of(
            trajectory, chunks, row, unit.read, slow_ms=self._slow.of(trajectory.assignment), stored_at=stored_at, reason=failure or ""
        )
        return _Change(made, chunk)

    def _insert_chunks(self, chunks: list[Row]) -> None:
        if not chunks or self._store.insert_if_absent("transcripts", chunks) == len(chunks):
            return
        # Some were there: left by a crash, perhaps long ago. Now they are needed, and the sweep of orphans goes by this time.
        found = self._store.by_key("transcripts", [chunk["key"] for chunk in chunks], ("key", "stored_at"))
        for key in [key for key, chunk in found.items() if self._now() - chunk["stored_at"] > FRESH]:
            self._store.update("transcripts", key, {"stored_at": self._now()})
