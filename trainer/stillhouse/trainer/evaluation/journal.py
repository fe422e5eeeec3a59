"""`trajectories.jsonl`: every evaluated episode, one JSON object a line, so that anybody can check and a killed run goes on.

A line also says how long the replica had been held and had computed since its segment began (a segment: one policy in one
process, with all of its parts; in older journals with one part), so that a kill loses no cost.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from stillhouse.schemas.errors import PermanentError
from stillhouse.trainer.evaluation.report import Held, Outcome


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line. `segment` names the process that it belongs to; `held` is since the segment began."""

    benchmark: str
    policy: str
    model: str
    run: int
    outcome: Outcome
    segment: str
    held: Held


class Journal:
    """The file of one evaluation. A last line that a kill cut in two is dropped.

    Args:
        path: made when it is not there.

    Raises:
        PermanentError: another line than the last cannot be read.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.entries = read_journal(path) if path.exists() else []
        self._file = path.open("ab")
        self._file.truncate(_whole(path.read_bytes()))

    def append(self, entry: Entry) -> None:
        """Write an entry; it is in the file when this returns."""
        self._file.write(msgspec.json.encode(entry) + b"\n")
        self._file.flush()
        self.entries.append(entry)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def of(self, benchmark: str, policy: str, model: str) -> list[Entry]:
        """The entries of one policy; episodes without an outcome are left out: they are tried again."""
        return [e for e in self._matching(benchmark, policy, model) if e.outcome.episode]

    def held(self, benchmark: str, policy: str, model: str) -> dict[str, list[Held]]:
        """How long the replica was held and computed for one policy: for each part its share of every segment that it is in.

        All shares of a segment are its time, so that any sum of them counts no second twice.
        """
        segments: dict[str, list[Entry]] = defaultdict(list)
        for entry in self._matching(benchmark, policy, model):
            segments[entry.segment].append(entry)
        shares: dict[str, list[Held]] = defaultdict(list)
        for entries in segments.values():
            for part, held in _shared(entries).items():
                shares[part].append(held)
        return dict(shares)

    def _matching(self, benchmark: str, policy: str, model: str) -> Iterator[Entry]:
        wanted = (benchmark, policy, model)
        return (e for e in self.entries if (e.benchmark, e.policy, e.model) == wanted)


def read_journal(path: Path) -> list[Entry]:
    """The entries of a journal, also of one that is being written.

    Raises:
        PermanentError: another line than the last cannot be read.
    """
    data, found = path.read_bytes(), []
    for number, line in enumerate(data[: _whole(data)].splitlines(), 1):
        try:
            found.append(msgspec.json.decode(line, type=Entry))
        except msgspec.MsgspecError as error:
            raise PermanentError(f"not an evaluated episode: {error}", where=f"{path}:{number}", fix="Remove the file.") from error
    return found


def copy_entries(source: Path, dest: Path | None) -> None:
    """Add one journal's entries to another that does not have them yet; nothing when either is not there.

    Raises:
        PermanentError: one of them cannot be read.
    """
    if dest is None or not source.exists():
        return
    book = Journal(dest)
    try:
        there = {msgspec.json.encode(entry) for entry in book.entries}
        for entry in read_journal(source):
            if msgspec.json.encode(entry) not in there:
                book.append(entry)
    finally:
        book.close()


def _shared(segment: Sequence[Entry]) -> dict[str, Held]:
    """The time of a segment, up to its last entry, apportioned over the parts that it has entries of."""
    busy = max((e.held.busy_s for e in segment if e.held.busy_s is not None), default=None)
    wall = max(e.held.wall_s for e in segment)
    weights = _in_flight(segment)
    total = sum(weights.values())
    return {
        part: Held(busy_s=None if busy is None else busy * (weight / total), wall_s=wall * (weight / total))
        for part, weight in weights.items()
    }


def _in_flight(segment: Sequence[Entry]) -> dict[str, float]:
    """Seconds that each part's requests were in flight; when none are known, entries."""
    seconds = dict.fromkeys((e.outcome.part for e in segment), 0.0)
    for entry in segment:
        if entry.outcome.episode:
            seconds[entry.outcome.part] += sum(entry.outcome.episode.latency_s)
    return seconds if any(seconds.values()) else dict(Counter(e.outcome.part for e in segment))


def _whole(data: bytes) -> int:
    """Bytes up to the end of the last whole line."""
    return data.rfind(b"\n") + 1
