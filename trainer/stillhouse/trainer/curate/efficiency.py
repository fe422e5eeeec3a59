"""Stage `efficiency`: fewer steps than the teacher's median for the same kind of work.

A stratum is a family with a set of tools used: by family alone the one short way out (escalate) would crowd out the work itself.
"""

from collections.abc import Callable, Mapping, Sequence

from stillhouse.trainer.curate.draft import Draft
from stillhouse.trainer.curate.stage import StageResult, decide
from stillhouse.trainer.ledger_histograms import Histogram, StepHistograms, median, pruned_stratum, raw_stratum, size
from stillhouse.trainer.settings import CurationSettings


def efficiency(drafts: Sequence[Draft], histograms: StepHistograms, settings: CurationSettings) -> StageResult:
    """Keep what is short for its stratum. Replayed and mixed trajectories are not judged again, or not by the teacher's measure.

    Labels are not judged: what is long in them is the student's.

    Args:
        drafts: what came in.
        histograms: steps of the lineage's and this window's teacher successes.
        settings: order, stratum floor and least.

    Returns:
        the result; its notes count what each of the two orders keeps.
    """
    judged = [d for d in drafts if d.taught and not (d.again or d.label)]
    pruned = _kept(judged, histograms.pruned, pruned_stratum, lambda d: d.count, settings)
    raw = _kept(judged, histograms.raw, raw_stratum, lambda d: d.raw_steps, settings)
    keep = (pruned if settings.order == "prune_first" else raw) | {d.key for d in drafts if not d.taught or d.again or d.label}
    free = len(drafts) - len(judged)
    notes = {"order": settings.order, "kept_prune_first": len(pruned) + free, "kept_filter_first": len(raw) + free}
    return decide("efficiency", drafts, lambda d: None if d.key in keep else "not_below_median", notes)


def _kept(
    drafts: Sequence[Draft],
    histograms: Mapping[str, Histogram],
    name: Callable[[Draft], str],
    steps: Callable[[Draft], int],
    settings: CurationSettings,
) -> set[str]:
    strata: dict[str, list[Draft]] = {}
    for draft in drafts:
        strata.setdefault(name(draft), []).append(draft)
    return {d.key for stratum, members in strata.items() for d in _short(members, histograms.get(stratum, {}), steps, settings)}


def _short(members: list[Draft], histogram: Histogram, steps: Callable[[Draft], int], settings: CurationSettings) -> list[Draft]:
    if size(histogram) < settings.stratum_floor:
        return members
    middle = median(histogram)
    short = [d for d in members if steps(d) < middle]
    if 2 * len(short) < len(members):
        short = [d for d in members if steps(d) <= middle]
    if len(short) >= min(settings.stratum_least, len(members)):
        return short
    return sorted(members, key=lambda d: (steps(d), d.key))[: settings.stratum_least]
