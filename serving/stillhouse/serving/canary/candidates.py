"""Who is next on a route. Pure."""

from stillhouse.schemas.facts import StudentStage
from stillhouse.schemas.route_state import RouteState


def next_student(state: RouteState, lineage: RouteState, *, auto: bool) -> str | None:
    """The student that should be on trial next; None while one is, or when there is nobody new.

    Whoever is in shadow was released, by a person or by the controller, and the latest released comes first. Else the newest registered
    student, if it is newer than all that have been tried: older ones were superseded while another was on trial.

    Args:
        state: of the route.
        lineage: the state under the lineage's own name, where the trainer registers; the same where both have one name.
        auto: whether registered students are released by themselves.
    """
    if state.canary is not None:
        return None
    for name, stage in reversed(state.stages.items()):
        if stage is StudentStage.SHADOW:
            return name
    if not auto:
        return None
    known = [*lineage.stages, *(name for name in state.stages if name not in lineage.stages)]
    if not known:
        return None
    newest = known[-1]
    tried = state.stages.get(newest) or lineage.stages[newest]
    return newest if tried is StudentStage.REGISTERED else None
