"""`trajectories.jsonl`: every evaluated episode, one JSON object a line, so that anybody can check and a killed run goes on.

A line also says how long the replica had been held and had computed since its segment began (a segment: one policy on one
part in one process), so that a kill loses no cost.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import msgspec

from stillhouse.schemas.errors import PermanentError
from stillhouse.trainer.evaluation.report import Held, Outcome


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line. `segment` names the process and part that it belongs to."""

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

    def of(self, benchmark: str, policy: str, model: str, part: str) -> list[Entry]:
        """The entries of one policy on one part; episodes without an outcome are left out: they are tried again."""
        return [e for e in self._matching(benchmark, policy, model, part) if e.outcome.episode]

    def held(self, benchmark: str, policy: str, model: str, part: str) -> Held:
        """How long the replica was held and computed for one policy's part, over all segments."""
        last: dict[str, list[Held]] = defaultdict(list)
        for entry in self._matching(benchmark, policy, model, part):
            last[entry.segment].append(entry.held)
        busy = [[h.busy_s for h in found if h.busy_s is not None] for found in last.values()]
        wall = sum(max(h.wall_s for h in found) for found in last.values())
        return Held(busy_s=sum(map(max, busy)) if all(busy) and busy else None, wall_s=wall)

    def _matching(self, benchmark: str, policy: str, model: str, part: str) -> Iterator[Entry]:
        wanted = (benchmark, policy, model, part)
        return (e for e in self.entries if (e.benchmark, e.policy, e.model, e.outcome.part) == wanted)


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


def _whole(data: bytes) -> int:
    """Bytes up to the end of the last whole line."""
    return data.rfind(b"\n") + 1
