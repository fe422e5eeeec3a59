"""What a worker knows of the partitions it reads: positions, ends, commits, watermarks. Pure: the clock is an argument."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Partition:
    """One partition, from one assignment on. `position` is the next offset to read; times are microseconds since the epoch.

    `end` is where the log ended when the broker was asked last, at `asked`.
    """

    number: int
    position: int
    end: int
    committed: int
    last_append: int = 0
    asked: int = 0
    watermark: int = 0
    """Everything appended before it is handled. Between two answers of the broker, and without any, it does not move."""
    stopped: bool = False

    def read(self, position: int, appended_at: int) -> None:
        """All records below `position` are handled; `appended_at` is the append time of the last."""
        self.position, self.last_append = position, appended_at
        self.end = max(self.end, position)
        self._advance()

    def confirm(self, end: int, asked: int) -> None:
        """The broker says where the log ends; `asked` is when the question was put: what came after may be beyond the end."""
        self.end, self.asked = max(end, self.position), asked
        self._advance()

    def _advance(self) -> None:
        """To when the end was asked for, if it was read to there; else to the append time of the last record read."""
        reached = self.asked if self.position >= self.end else 0
        self.watermark = max(self.watermark, self.last_append, reached)


class Partitions:
    """The partitions that are read now."""

    def __init__(self) -> None:
        self._found: dict[int, Partition] = {}

    def __contains__(self, partition: int) -> bool:
        """Whether this partition is read."""
        return partition in self._found

    def __getitem__(self, partition: int) -> Partition:
        """The partition of that number."""
        return self._found[partition]

    def __iter__(self) -> Iterator[Partition]:
        """All of them, in order."""
        return iter([self._found[number] for number in sorted(self._found)])

    def numbers(self) -> list[int]:
        """Their numbers, in order."""
        return sorted(self._found)

    def begin(self, partition: int, position: int, end: int, committed: int | None) -> None:
        """Start to read a partition. Where that is not its commit, the start is committed next: a decision is made once."""
        self._found[partition] = Partition(partition, position, end, -1 if committed is None else committed)

    def end(self, partition: int) -> None:
        """Read it no longer."""
        del self._found[partition]

    def current(self, partition: Partition) -> bool:
        """Whether it is still the same assignment: a rebalance may have taken it, or begun it anew elsewhere."""
        return self._found.get(partition.number) is partition

    @property
    def stopped(self) -> list[int]:
        """Those that a flood without a source has stopped."""
        return [number for number, found in self._found.items() if found.stopped]
