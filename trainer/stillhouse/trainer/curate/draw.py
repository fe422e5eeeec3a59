"""Stage `draw`, only where a window asks for a number of examples: new ones by family weight, earlier ones replayed uniformly.

What is not drawn returns to the pool: it is not used up, and the next window sees it again.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import msgspec

from stillhouse.schemas.ledger import chance
from stillhouse.trainer.curate.draft import Draft
from stillhouse.trainer.curate.stage import StageResult, decide

NEW, AGAIN = "over_quota", "not_replayed"


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """What a window draws.

    Attributes:
        size: new examples; None takes all.
        weights: a family's part of them; families that are not named weigh 1. None draws in the order of time alone.
        replay: replayed examples for each new one; None takes all.
        salt: what makes one window's draw of earlier examples differ from another's.
    """

    size: int | None = None
    weights: dict[str, float] | None = None
    replay: float | None = None
    salt: str = ""


def draw(drafts: Sequence[Draft], quota: Quota, seed: int) -> StageResult:
    """Draw new examples, within each family as many as its weight gives, and earlier ones by a hash.

    A family's part is split over the sets of tools that its pool used, in the pool's own proportions, oldest first in each: a family
    whose tasks end in two ways would else be taught the one that happened to come first. Labels come beside runs and not instead of them:
    where there is a size, at most as many as runs are drawn.
    """
    new = sorted((d for d in drafts if not d.again), key=lambda d: (d.trajectory.first_occurred_at, d.key))
    old = sorted((d for d in drafts if d.again), key=lambda d: (chance(seed, "replay", quota.salt, d.key), d.key))
    drawn = {d.key for d in _new([d for d in new if not d.label], quota)}
    beside = quota if quota.size is None else msgspec.structs.replace(quota, size=len(drawn))
    drawn |= {d.key for d in _new([d for d in new if d.label], beside)}
    count = len(old) if quota.replay is None else round(quota.replay * len(drawn))
    drawn |= {d.key for d in _by_family(old, shares(count, dict.fromkeys(_sizes(old), 1.0), _sizes(old)))}
    gone = {d.key: AGAIN if d.again else NEW for d in drafts if d.key not in drawn}
    families = _sizes([d for d in drafts if d.key in drawn and not d.again])
    notes = {"new": families, "replayed": _sizes([d for d in drafts if d.key in drawn and d.again])}
    return decide("draw", drafts, lambda d: gone.get(d.key), notes)


def shares(total: int, weights: Mapping[str, float], available: Mapping[str, int]) -> dict[str, int]:
    """Split a number by weights, never more than is available; what one family lacks goes to the others by their weights.

    Largest remainders decide, ties by name; a family without a weight weighs 1.
    """
    given = dict.fromkeys(sorted(available), 0)
    left = min(total, sum(available.values()))
    while left:
        free = {f: Fraction(str(weights.get(f, 1.0))) for f in given if given[f] < available[f]}
        for family, n in _largest_remainders(left, free if any(free.values()) else dict.fromkeys(free, Fraction(1))).items():
            more = min(n, available[family] - given[family])
            given[family] += more
            left -= more
    return given


def _largest_remainders(total: int, weights: Mapping[str, Fraction]) -> dict[str, int]:
    """Whole parts first, what is left to the largest remainders (H. Hamilton's method of apportionment)."""
    weight = sum(weights.values())
    exact = {f: total * w / weight for f, w in weights.items()}
    parts = {f: int(x) for f, x in exact.items()}
    for family in sorted(exact, key=lambda f: (parts[f] - exact[f], f))[: total - sum(parts.values())]:
        parts[family] += 1
    return parts


def _new(new: Sequence[Draft], quota: Quota) -> Sequence[Draft]:
    if quota.size is None:
        return new
    if quota.weights is None:
        return new[: quota.size]
    drawn: list[Draft] = []
    for family, count in shares(quota.size, quota.weights, _sizes(new)).items():
        drawn += _by_plan([d for d in new if d.family == family], count)
    return drawn


def _by_plan(drafts: Sequence[Draft], count: int) -> list[Draft]:
    sizes = Counter(map(_plan, drafts))
    return _first(drafts, shares(count, sizes, sizes), _plan)


def _plan(draft: Draft) -> str:
    return " ".join(draft.tools_used)


def _by_family(drafts: Sequence[Draft], counts: Mapping[str, int]) -> list[Draft]:
    return _first(drafts, counts, lambda draft: draft.family)


def _first(drafts: Sequence[Draft], counts: Mapping[str, int], group: Callable[[Draft], str]) -> list[Draft]:
    """The first of each group, as many as it is given."""
    left, out = dict(counts), []
    for draft in drafts:
        if left.get(group(draft), 0) > 0:
            left[group(draft)] -= 1
            out.append(draft)
    return out


def _sizes(drafts: Sequence[Draft]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for draft in drafts:
        counts[draft.family] = counts.get(draft.family, 0) + 1
    return dict(sorted(counts.items()))
