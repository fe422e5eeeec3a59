"""Which sequences run in the next step, and which of their tokens. Pure: no torch, no thread, the time is an argument.

A sequence waits, is admitted to a lane, has its prompt prefilled in pieces, then yields one token a step until it ends.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from stillhouse.schemas.errors import RetryableError


class QueueFullError(RetryableError):
    """More requests wait than the server holds. `retry_after` says when to come back."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a scheduler.

    Attributes:
        batch: sequences that run at once.
        queue: sequences that wait at most.
        wait_s: how long a request waits for company when nothing runs.
        prefill_tokens: prompt tokens of one step, over all sequences.
        shared_tokens: a request waits for a running prefill that will give it so many tokens more than the cache has.
    """

    batch: int = 32
    queue: int = 512
    wait_s: float = 0.02
    prefill_tokens: int = 512
    shared_tokens: int = 32


@dataclass(eq=False, slots=True)
class Running:
    """One sequence. `ids` grows by what is generated; the first `done` of them have their keys and values.

    The first `apart` of these are in long segments outside of the lane, the rest is in the lane.
    `scored` asks for the log-probability of every prompt token, so nothing of the prompt may come from the cache.
    """

    key: int
    adapter: str
    prompt: tuple[int, ...]
    max_new: int
    arrived: float
    scored: bool = False
    ids: list[int] = field(default_factory=list)
    done: int = 0
    apart: int = 0
    lane: int = -1
    behind: "Running | None" = None

    def __post_init__(self) -> None:
        """Begin with the prompt."""
        self.ids = list(self.prompt)

    @property
    def prefilling(self) -> bool:
        """Whether some of the prompt is still to be computed."""
        return self.done < len(self.prompt)


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens `start … start+count-1` of a sequence go through the model in this step. `last`: a token comes out."""

    sequence: Running
    start: int
    count: int
    last: bool


class Scheduler:
    """Admission and batching.

    Args:
        limits: the bounds.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.waiting: list[Running] = []
        self.running: list[Running] = []

    def add(self, sequence: Running) -> None:
        """Take a sequence into the queue.

        Raises:
            QueueFullError: too many wait.
        """
        if len(self.waiting) >= self.limits.queue:
            raise QueueFullError(f"{len(self.waiting)} requests are waiting", fix="Send fewer at once, or add a replica.", retry_after=1.0)
        self.waiting.append(sequence)

    def remove(self, key: int) -> Running | None:
        """Take a sequence out, wherever it is; None when it has ended already."""
        for group in (self.waiting, self.running):
            for sequence in group:
                if sequence.key == key:
                    group.remove(sequence)
                    return sequence
        return None

    def delay(self, now: float) -> float | None:
        """Seconds until there is something to do: 0 now, None when only a new request can change that."""
        if self.running or len(self.waiting) >= self.limits.batch:
            return 0.0
        if not self.waiting:
            return None
        return max(0.0, self.waiting[0].arrived + self.limits.wait_s - now)

    def admit(self, now: float, cached: Callable[[Running], int]) -> list[Running]:
        """Move sequences from the queue to free lanes, first come first served.

        One whose prompt begins like a prompt that is being prefilled stays behind it, once, until that prefix can be shared.

        Args:
            now: the time, in the unit of `arrived`.
            cached: how many of a sequence's tokens the cache holds.

        Returns:
            the admitted ones, each with its lane.
        """
        if self.delay(now) != 0.0:
            return []
        admitted: list[Running] = []
        for sequence in list(self.waiting):
            if len(self.running) >= self.limits.batch:
                break
            if self._should_defer(sequence, cached):
                continue
            self.waiting.remove(sequence)
            sequence.lane = self._free_lane()
            self.running.append(sequence)
            admitted.append(sequence)
        return admitted

    def rows(self) -> list[Row]:
        """The work of the next step: every decoding sequence's newest token, and prompt pieces as the budget allows."""
        budget, rows = self.limits.prefill_tokens, []
        for sequence in self.running:
            if not sequence.prefilling:
                rows.append(Row(sequence, sequence.done, len(sequence.ids) - sequence.done, True))
                continue
            count = min(len(sequence.prompt) - sequence.done, budget)
            if count:
                budget -= count
                rows.append(Row(sequence, sequence.done, count, sequence.done + count == len(sequence.prompt)))
        return rows

    def _should_defer(self, sequence: Running, cached: Callable[[Running], int]) -> bool:
        if sequence.behind:
            return sequence.behind.prefilling and sequence.behind in self.running
        peers = [r for r in self.running if r.prefilling and r.adapter == sequence.adapter and not sequence.scored]
        best = max(peers, key=lambda r: common_prefix(r.prompt, sequence.prompt), default=None)
        coming = common_prefix(best.prompt, sequence.prompt) if best else 0
        if coming < self.limits.shared_tokens or coming - cached(sequence) < self.limits.shared_tokens:
            return False
        sequence.behind = best
        return True

    def _free_lane(self) -> int:
        """The lowest: attention runs over the range of lanes in use."""
        taken = {r.lane for r in self.running}
        return next(lane for lane in range(self.limits.batch) if lane not in taken)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences have in common at the beginning."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    return next(i for i in range(n) if a[i] != b[i])
