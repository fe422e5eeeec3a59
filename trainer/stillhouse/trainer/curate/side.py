"""Stage `side`: which tasks may be trained on. Decided on tasks and before any filter, so that the teacher's failures are held out too."""

from collections import Counter
from collections.abc import Iterable, Sequence

from stillhouse.schemas.ledger import LeaderLedger, task_key
from stillhouse.schemas.trajectory import Trajectory
from stillhouse.trainer.curate.draft import Draft, draft_of
from stillhouse.trainer.curate.stage import StageResult, decide
from stillhouse.trainer.examples import Side

_WITHOUT = {
    Side.TEST: "evaluation of this family will be pooled with others, or absent",
    Side.VALIDATION: "no loss of this family stops training early or judges the student",
}


def placed(trajectories: Iterable[Trajectory], ledger: LeaderLedger, again: frozenset[str] = frozenset()) -> list[Draft]:
    """Trajectories as drafts, each with its task's place, in the order of their keys. `again` names those trained on before."""
    drafts = []
    for trajectory in sorted(trajectories, key=lambda t: t.key):
        key = task_key(trajectory)
        place = ledger.place(trajectory.tenant, trajectory.task.family or "", key)
        if place is None:
            raise LookupError(f"the ledger has no place for task {key}: assign the tasks of a window before its trajectories are placed")
        drafts.append(draft_of(trajectory, task_key=key, leader=place.leader, side=place.side, again=trajectory.key in again))
    return drafts


def side(drafts: Sequence[Draft], wanted: Side = Side.TRAIN) -> StageResult:
    """Keep one side; the others are dropped under the name of theirs."""
    tasks = Counter(place for place, _ in {(d.side, (d.tenant, d.family, d.task_key)) for d in drafts})
    notes = {"tasks": {place.value: tasks[place] for place in Side if tasks[place]}}
    return decide("side", drafts, lambda d: None if d.side is wanted else d.side.value, notes)


def held_out_notes(drafts: Iterable[Draft], ledger: LeaderLedger) -> tuple[str, ...]:
    """What is missing where no task of a family was ever placed on a held-out side: with few tasks that happens by chance."""
    families: dict[str, set[str]] = {}
    for draft in drafts:
        families.setdefault(draft.family, set()).add(draft.tenant)
    sides = {f: {found for tenant in tenants for found in ledger.sides(tenant, f)} for f, tenants in sorted(families.items())}
    missing = {place: [f or "(no family)" for f, found in sides.items() if place not in found] for place in _WITHOUT}
    return tuple(
        f"{', '.join(names)}: no task is on the {place.value} side; {_WITHOUT[place]}" for place, names in missing.items() if names
    )
