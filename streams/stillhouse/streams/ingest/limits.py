"""How much of one source may be undecodable before it is no longer parsed. Pure: the clock is an argument."""

from collections import deque
from dataclasses import dataclass, field


@dataclass
class _Window:
    """Counts of one source in slots of a tenth of the window."""

    slots: deque[list[float]] = field(default_factory=deque)  # [start, bad, all]
    bad: int = 0
    total: int = 0
    closed_until: float = float("-inf")


class RatioLimit:
    """Over the ratio within the window a source is closed for one window; then it may try again.

    Args:
        ratio: the share of undecodable records that is too much.
        minimum: how many records it takes to judge.
        window: seconds.
    """

    def __init__(self, ratio: float, minimum: int, window: float) -> None:
        self._ratio, self._minimum, self._window = ratio, minimum, window
        self._sources: dict[str, _Window] = {}
        self._swept = float("-inf")

    def closed(self, source: str, now: float) -> bool:
        """Whether the source goes to the DLQ unparsed."""
        found = self._sources.get(source)
        return found is not None and now < found.closed_until

    def count(self, source: str, good: int, bad: int, now: float) -> bool:
        """Add what was read of a source.

        Returns:
            Whether this closed the source.
        """
        self._sweep(now)
        found = self._sources.setdefault(source, _Window())
        self._forget(found, now)
        if not found.slots or now - found.slots[-1][0] >= self._window / 10:
            found.slots.append([now, 0, 0])
        found.slots[-1][1] += bad
        found.slots[-1][2] += good + bad
        found.bad += bad
        found.total += good + bad
        if found.total < self._minimum or found.bad <= self._ratio * found.total:
            return False
        self._sources[source] = _Window(closed_until=now + self._window)
        return True

    def _sweep(self, now: float) -> None:
        """Drop sources of which nothing was heard for a window: their names are clients' to choose, and many."""
        if now - self._swept < self._window:
            return
        self._swept = now
        for source, found in list(self._sources.items()):
            if now >= found.closed_until and not (found.slots and now - found.slots[-1][0] <= self._window):
                del self._sources[source]

    def _forget(self, found: _Window, now: float) -> None:
        while found.slots and now - found.slots[0][0] > self._window:
            _, bad, total = found.slots.popleft()
            found.bad -= int(bad)
            found.total -= int(total)
