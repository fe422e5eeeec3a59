"""How many steps the teacher's successes take, per stratum: integer histograms, so that medians do not depend on any order."""

import json
from collections.abc import Iterable, Mapping
from fractions import Fraction

import msgspec

from stillhouse.schemas.events import Outcome
from stillhouse.trainer.curate.draft import Draft

Histogram = dict[int, int]


class StepHistograms(msgspec.Struct, frozen=True, kw_only=True):
    """Steps of successful teacher trajectories by stratum (family and set of tools used): as recorded, and after pruning.

    A window keeps its own; a lineage's is the sum over its windows.
    """

    raw: dict[str, Histogram] = {}
    pruned: dict[str, Histogram] = {}

    def plus(self, other: "StepHistograms") -> "StepHistograms":
        """The sum of two."""
        return StepHistograms(raw=_sum(self.raw, other.raw), pruned=_sum(self.pruned, other.pruned))


def stratum(family: str, tools: Iterable[str]) -> str:
    """The name of a stratum."""
    return json.dumps([family, sorted(set(tools))], separators=(",", ":"), ensure_ascii=False)


def raw_stratum(draft: Draft) -> str:
    """The stratum of a trajectory as it was recorded."""
    return stratum(draft.family, draft.raw_tools)


def pruned_stratum(draft: Draft) -> str:
    """The stratum of a trajectory after pruning."""
    return stratum(draft.family, draft.tools_used)


def histograms_of(drafts: Iterable[Draft]) -> StepHistograms:
    """The histograms of one window: of what the teacher did alone and well, and not of what earlier windows have counted."""
    raw: dict[str, Histogram] = {}
    pruned: dict[str, Histogram] = {}
    for draft in drafts:
        if draft.taught and not draft.again and draft.trajectory.outcome is Outcome.SUCCESS:
            _count(raw.setdefault(raw_stratum(draft), {}), draft.raw_steps)
            _count(pruned.setdefault(pruned_stratum(draft), {}), draft.count)
    return StepHistograms(raw=raw, pruned=pruned)


def size(histogram: Mapping[int, int]) -> int:
    """How many trajectories a histogram counts."""
    return sum(histogram.values())


def median(histogram: Mapping[int, int]) -> Fraction:
    """The median, half-way between the two middle ones of an even number.

    Raises:
        ValueError: the histogram is empty.
    """
    total = size(histogram)
    if not total:
        raise ValueError("an empty histogram has no median")
    return Fraction(_at(histogram, (total - 1) // 2) + _at(histogram, total // 2), 2)


def _at(histogram: Mapping[int, int], place: int) -> int:
    for steps in sorted(histogram):
        place -= histogram[steps]
        if place < 0:
            return steps
    raise IndexError(place)


def _count(histogram: Histogram, steps: int) -> None:
    histogram[steps] = histogram.get(steps, 0) + 1


def _sum(one: Mapping[str, Histogram], other: Mapping[str, Histogram]) -> dict[str, Histogram]:
    out = {name: dict(histogram) for name, histogram in one.items()}
    for name, histogram in other.items():
        into = out.setdefault(name, {})
        for steps, n in histogram.items():
            into[steps] = into.get(steps, 0) + n
    return out
