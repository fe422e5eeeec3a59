"""Whether a trajectory is complete, as far as the events seen so far tell. It only times flushes: no row depends on it."""

from collections import OrderedDict

from stillhouse.schemas.events import Body, StepTaken, TrajectoryEnded, TrajectoryStarted


class Progress:
    """What was seen of one trajectory, in this process, flushed or not."""

    __slots__ = ("ended", "expected", "indices", "started", "timed")

    def __init__(self) -> None:
        self.started = self.ended = False
        self.expected: int | None = None
        self.indices = 0  # a bit for each index seen
        self.timed = 0

    def see(self, body: Body) -> None:
        """Take one event into account."""
        kind = type(body)
        if kind is StepTaken:
            index = body.index  # type: ignore[union-attr]
            if index is None or not 0 <= index < 1_000_000:
                self.timed += 1
            else:
                self.indices |= 1 << index
        elif kind is TrajectoryStarted:
            self.started = True
        elif kind is TrajectoryEnded:
            self.ended = True
            self.expected = body.steps  # type: ignore[union-attr]

    def complete(self) -> bool:
        """Started, ended, and no step known to be missing."""
        if not (self.started and self.ended):
            return False
        found = self.indices.bit_count()
        if self.timed:
            return self.expected is None or found + self.timed >= self.expected
        return self.indices.bit_length() == found and (self.expected is None or found >= self.expected)


class ProgressMemory:
    """The progress of the last trajectories, so that what comes after a flush (a late end, feedback) need not wait for the timer."""

    def __init__(self, size: int = 50_000) -> None:
        self._size = size
        self._found: OrderedDict[str, Progress] = OrderedDict()

    def of(self, key: str) -> Progress:
        """The progress of one trajectory; the least recently used is forgotten."""
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = Progress()
            if len(self._found) > self._size:
                self._found.popitem(last=False)
        else:
            self._found.move_to_end(key)
        return found
