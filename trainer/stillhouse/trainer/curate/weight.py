"""Stage `weight`: short solutions count more, no tenant and no source counts for all, and the mean weight of a token is one.

Without the last, weight and learning rate would be one knob.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from stillhouse.schemas.events import PolicyRole
from stillhouse.trainer.curate.draft import Draft
from stillhouse.trainer.curate.stage import StageResult
from stillhouse.trainer.ledger_histograms import StepHistograms, median, pruned_stratum
from stillhouse.trainer.settings import CurationSettings

_ROUNDS = 50


def weight(drafts: Sequence[Draft], histograms: StepHistograms, settings: CurationSettings) -> StageResult:
    """Give each trajectory w = clip((stratum median / steps) ** gamma, low, high). `rescale` follows when tokens are counted."""

    def weighed(draft: Draft) -> Draft:
        if draft.label:  # its length is the student's
            return draft
        histogram = histograms.pruned.get(pruned_stratum(draft))
        if not histogram:  # only mixed or replayed runs: nothing to compare with
            return draft
        ratio = float(median(histogram)) / max(draft.count, 1)
        return msgspec.structs.replace(draft, weight=min(max(ratio**settings.gamma, settings.weight_low), settings.weight_high))

    kept = tuple(map(weighed, drafts))
    notes = {"least": min((d.weight for d in kept), default=1.0), "greatest": max((d.weight for d in kept), default=1.0)}
    return StageResult("weight", kept, {}, notes)


def rescale(drafts: Sequence[Draft], tokens: Mapping[str, int], settings: CurationSettings) -> tuple[list[Draft], dict[str, Any]]:
    """Cap tenants and sources, then rescale so that the weights' mean over supervised tokens is one.

    Args:
        drafts: the window's.
        tokens: supervised tokens of each, by key.
        settings: the caps.

    Returns:
        the drafts with their final weights, and the caps that could not be met (too few groups to share the rest).
    """
    mass = {d.key: d.weight * tokens[d.key] for d in drafts}
    caps: list[tuple[str, Callable[[Draft], str], float]] = [
        ("tenant", lambda d: d.tenant, settings.tenant_cap),
        ("source", lambda d: d.source, settings.source_cap),
        ("students", _student, settings.self_training_share),
    ]
    unmet = [name for name, of, cap in caps if not _can_meet(drafts, of, cap, name)]
    open_caps = [(of, cap, name) for name, of, cap in caps if cap < 1 and name not in unmet]
    for _ in range(_ROUNDS):  # one cap may push a group over another
        if not any([_cap(drafts, mass, of, cap, name) for of, cap, name in open_caps]):
            break
    total, count = math.fsum(mass[d.key] for d in drafts), sum(tokens[d.key] for d in drafts)
    scale = count / total if total else 1.0
    out = [msgspec.structs.replace(d, weight=mass[d.key] / tokens[d.key] * scale if tokens[d.key] else d.weight) for d in drafts]
    return out, {"caps_not_met": unmet} if unmet else {}


def _student(draft: Draft) -> str:
    return "students" if draft.source.startswith(f"{PolicyRole.STUDENT.value}:") else ""


def _bound(group: str, name: str) -> bool:
    """Whether a cap holds for a group: the one on students only for theirs."""
    return name != "students" or group == "students"


def _can_meet(drafts: Sequence[Draft], of: Callable[[Draft], str], cap: float, name: str) -> bool:
    groups = {of(d) for d in drafts}
    free = any(not _bound(g, name) for g in groups)
    return cap >= 1 or free or not any(_bound(g, name) for g in groups) or len(groups) * cap >= 1


def _cap(drafts: Sequence[Draft], mass: dict[str, float], of: Callable[[Draft], str], cap: float, name: str) -> bool:
    """Scale the groups that are over a cap down to it, the others' mass staying. Returns whether anything changed."""
    groups: dict[str, float] = {}
    for draft in drafts:
        groups[of(draft)] = groups.get(of(draft), 0.0) + mass[draft.key]
    over: set[str] = set()
    while True:  # capping one group raises the share of the rest
        rest = math.fsum(m for g, m in groups.items() if g not in over)
        allowed = cap * rest / (1 - len(over) * cap)
        more = {g for g, m in groups.items() if g not in over and _bound(g, name) and m > allowed * (1 + 1e-9)}
        if not more or len(over | more) * cap >= 1:
            break
        over |= more
    scale = {g: allowed / groups[g] for g in over}
    for draft in drafts:
        mass[draft.key] *= scale.get(of(draft), 1.0)
    return bool(over)
