"""Step 3: unflushed events, grouped by trajectory, and the offset each partition may be committed to. Pure: the clock is an argument.

An entry is one trajectory's unflushed events in one partition. Entries of a partition are kept in the order of their first
offset, so the first one is also the one that holds the commit back and the oldest.
"""

from collections.abc import Iterable, Sequence

from stillhouse.streams.ingest.progress import ProgressMemory
from stillhouse.streams.ingest.records import Arrived

Place = tuple[int, str]


class Entry:
    """Unflushed events of one trajectory in one partition."""

    __slots__ = ("events", "first_offset", "key", "partition", "ready", "since", "size", "source")

    def __init__(self, first: Arrived, now: float) -> None:
        self.key, self.partition, self.source = first.key, first.partition, first.source
        self.first_offset, self.since = first.offset, now
        self.events: list[Arrived] = []
        self.size = 0
        self.ready = False


class OpenTrajectories:
    """All unflushed events of a worker.

    Args:
        limit: bytes of all of them, beyond which the oldest are to be flushed.
        source_limit: the same for each source.
    """

    def __init__(self, limit: int, source_limit: int) -> None:
        self._limit, self._source_limit = limit, source_limit
        self._open: dict[Place, Entry] = {}
        self._by_partition: dict[int, dict[str, Entry]] = {}
        self._by_source: dict[str, dict[Place, Entry]] = {}
        self._source_bytes: dict[str, int] = {}
        self._ready: dict[Place, Entry] = {}
        self._flushing: dict[Place, Entry] = {}
        self._ready_since: float | None = None
        self._ready_bytes = 0
        self._progress = ProgressMemory()
        self.bytes = 0

    def __len__(self) -> int:
        """How many trajectories are open."""
        return len(self._open)

    def add(self, events: Iterable[Arrived], now: float) -> None:
        """Group events, in the order of their offsets within each partition."""
        for arrived in events:
            place = (arrived.partition, arrived.key)
            entry = self._open.get(place)
            if entry is None:
                entry = self._insert(place, Entry(arrived, now))
            entry.events.append(arrived)
            size = arrived.size
            entry.size += size
            self.bytes += size
            self._source_bytes[entry.source] += size
            progress = self._progress.of(arrived.key)
            progress.see(arrived.member.event.body)
            if entry.ready:
                self._ready_bytes += size
            elif progress.ended and progress.complete():
                self._make_ready(place, entry, now)

    def _insert(self, place: Place, entry: Entry) -> Entry:
        self._open[place] = entry
        self._by_partition.setdefault(entry.partition, {})[entry.key] = entry
        self._by_source.setdefault(entry.source, {})[place] = entry
        self._source_bytes.setdefault(entry.source, 0)
        return entry

    def _make_ready(self, place: Place, entry: Entry, now: float) -> None:
        entry.ready = True
        self._ready[place] = entry
        self._ready_bytes += entry.size
        if self._ready_since is None:
            self._ready_since = now

    def park(self, now: float, park_after: float) -> int:
        """Make ready what has waited too long since its first unflushed event.

        Returns:
            How many.
        """
        found = 0
        for entries in self._by_partition.values():
            for entry in entries.values():
                if now - entry.since < park_after:
                    break  # the later ones are younger
                if not entry.ready:
                    self._make_ready((entry.partition, entry.key), entry, now)
                    found += 1
        return found

    def relieve(self, now: float) -> int:
        """Make ready the oldest, as they are, until what stays open is within the bounds.

        Returns:
            How many.
        """
        found = self._oldest(self._open, self.bytes - self._ready_bytes - self._limit, now)
        for source, entries in self._by_source.items():
            excess = self._source_bytes[source] - self._source_limit
            if excess > 0:
                found += self._oldest(entries, excess - sum(e.size for e in entries.values() if e.ready), now)
        return found

    def _oldest(self, entries: dict[Place, Entry], excess: int, now: float) -> int:
        found = 0
        for place, entry in entries.items():
            if excess <= 0:
                break
            if not entry.ready:
                excess -= entry.size
                self._make_ready(place, entry, now)
                found += 1
        return found

    def make_all_ready(self, now: float) -> None:
        """Everything is to be flushed, complete or not."""
        for place, entry in self._open.items():
            if not entry.ready:
                self._make_ready(place, entry, now)

    def due(self, now: float, rows: int, size: int, every: float) -> str:
        """Why a flush is due: `rows`, `bytes` or `time`; empty when none is."""
        if self._ready_since is None:
            return ""
        if len(self._ready) >= rows:
            return "rows"
        if self._ready_bytes >= size:
            return "bytes"
        return "time" if now - self._ready_since >= every else ""

    @property
    def over(self) -> bool:
        """Whether the memory of all that is not stored is beyond its bound: read no further before a flush is done."""
        return self.bytes > self._limit

    def take(self, rows: int, size: int) -> list[Entry]:
        """Some of what is ready, for one flush. It stays in the books until `done`; later events of the same trajectory open anew."""
        taken: list[Entry] = []
        total = 0
        for place, entry in self._ready.items():
            if taken and (len(taken) >= rows or total + entry.size > size):
                break
            taken.append(entry)
            total += entry.size
            self._flushing[place] = entry
        for entry in taken:
            self._forget((entry.partition, entry.key), entry)
        return taken

    def _forget(self, place: Place, entry: Entry) -> None:
        del self._open[place]
        del self._by_partition[entry.partition][entry.key]
        del self._by_source[entry.source][place]
        if self._ready.pop(place, None) is not None:
            self._ready_bytes -= entry.size
        if not self._ready:
            self._ready_since = None

    def done(self, entries: Sequence[Entry]) -> None:
        """These are stored."""
        for entry in entries:
            if self._flushing.pop((entry.partition, entry.key), None) is entry:
                self._free(entry)

    def _free(self, entry: Entry) -> None:
        self.bytes -= entry.size
        left = self._source_bytes[entry.source] = self._source_bytes[entry.source] - entry.size
        if left <= 0 and not self._by_source[entry.source]:
            del self._source_bytes[entry.source], self._by_source[entry.source]

    def lose(self, partition: int) -> None:
        """Another worker reads this partition now; what a flush in progress still writes are true events."""
        for entry in list(self._by_partition.get(partition, {}).values()):
            self._forget((partition, entry.key), entry)
            self._free(entry)
        self._by_partition.pop(partition, None)
        for place, entry in list(self._flushing.items()):
            if place[0] == partition:
                del self._flushing[place]
                self._free(entry)

    def commit_offset(self, partition: int, position: int) -> int:
        """The offset that may be committed: the first of any unflushed event, or the next one to read."""
        entries = self._by_partition.get(partition)
        firsts = [position]
        if entries:
            firsts.append(next(iter(entries.values())).first_offset)
        firsts.extend(entry.first_offset for (p, _), entry in self._flushing.items() if p == partition)
        return min(firsts)
