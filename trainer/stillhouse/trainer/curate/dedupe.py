"""Stage `dedupe`: one trajectory of a task and plan, and few of one group of near-equal tasks."""

from collections.abc import Callable, Hashable, Iterable, Sequence

from stillhouse.trainer.curate.draft import Draft
from stillhouse.trainer.curate.stage import StageResult, decide
from stillhouse.trainer.settings import CurationSettings

Group = tuple[Hashable, ...]


def dedupe(drafts: Sequence[Draft], settings: CurationSettings) -> StageResult:
    """Keep the best of each task and plan (the sequence of tools), then at most `leader_limit` of a leader, different plans first.

    What an earlier window trained on is not judged again, and takes its place before anything new. Labels take no run's place: of a
    leader those of `leader_limit` failed runs are kept, and of them one of each task and plan.
    """
    gone = _repeated([d for d in drafts if not d.label])
    left = [d for d in drafts if d.key not in gone and not d.label]
    for group in _grouped(left, lambda d: (d.tenant, d.family, d.leader)):
        gone |= {d.key: "leader_full" for d in _plans_first(group)[settings.leader_limit :] if not d.again}
    for group in _grouped([d for d in drafts if d.label], lambda d: (d.tenant, d.family, d.leader)):
        runs = list(dict.fromkeys(d.trajectory.parent_trajectory for d in group))[: settings.leader_limit]
        gone |= {d.key: "leader_full" for d in group if d.trajectory.parent_trajectory not in runs and not d.again}
    gone |= _repeated([d for d in drafts if d.label and d.key not in gone])
    return decide("dedupe", drafts, lambda d: gone.get(d.key))


def _repeated(drafts: Sequence[Draft]) -> dict[str, str]:
    gone: dict[str, str] = {}
    for group in _grouped(drafts, lambda d: (d.tenant, d.family, d.task_key, d.plan)):
        gone |= {d.key: "same_task_and_plan" for d in group[1:] if not d.again}
    return gone


def rank(draft: Draft) -> tuple[object, ...]:
    """Best first: trained on before, then fewest steps, output tokens, cost and time, unknown values last; the key decides the rest."""
    return (
        not draft.again,
        draft.count,
        *_total(s.output_tokens for s in draft.steps),
        *_total(s.cost_micro_usd for s in draft.steps),
        *_total(s.latency_ms for s in draft.steps),
        draft.key,
    )


def _total(values: Iterable[float | None]) -> tuple[bool, float]:
    known = list(values)
    return (None in known, sum(v for v in known if v is not None))


def _grouped(drafts: Sequence[Draft], of: Callable[[Draft], Group]) -> list[list[Draft]]:
    groups: dict[Group, list[Draft]] = {}
    for draft in sorted(drafts, key=rank):
        groups.setdefault(of(draft), []).append(draft)
    return list(groups.values())


def _plans_first(group: Sequence[Draft]) -> list[Draft]:
    """The best of each plan, then the others; what was trained on before stays in front."""
    seen: set[tuple[str, ...]] = set()
    first = []
    for draft in group:
        if draft.again or draft.plan not in seen:
            first.append(draft)
        seen.add(draft.plan)
    return first + [d for d in group if d not in first]
