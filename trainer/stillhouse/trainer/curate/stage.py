"""What every stage of curation gives back: what it kept, and why each of the others is gone."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from stillhouse.trainer.curate.draft import Draft


class StageResult(NamedTuple):
    """The outcome of one stage.

    Attributes:
        name: the stage's.
        kept: what goes on, in the order it came.
        gone: for each trajectory that was dropped, its key and the reason.
        notes: further counts of this stage (calls pruned, reasoning compressed), as JSON values.
    """

    name: str
    kept: tuple[Draft, ...]
    gone: dict[str, str]
    notes: dict[str, Any]

    @property
    def dropped(self) -> dict[str, int]:
        """How many trajectories each reason cost."""
        return dict(sorted(Counter(self.gone.values()).items()))


def decide(name: str, drafts: Iterable[Draft], reason: Callable[[Draft], str | None], notes: dict[str, Any] | None = None) -> StageResult:
    """A stage that looks at one trajectory at a time.

    Args:
        name: the stage's.
        drafts: what came in.
        reason: why a trajectory is dropped; None keeps it.
        notes: see `StageResult`.
    """
    kept, gone = [], {}
    for draft in drafts:
        why = reason(draft)
        if why is None:
            kept.append(draft)
        else:
            gone[draft.key] = why
    return StageResult(name, tuple(kept), gone, notes or {})


def transform(
    name: str, drafts: Sequence[Draft], change: Callable[[Draft], Draft | str], notes: dict[str, Any] | None = None
) -> StageResult:
    """A stage that changes one trajectory at a time; a string in its place is the reason that it is dropped for."""
    kept, gone = [], {}
    for draft in drafts:
        changed = change(draft)
        if isinstance(changed, str):
            gone[draft.key] = changed
        else:
            kept.append(changed)
    return StageResult(name, tuple(kept), gone, notes or {})
