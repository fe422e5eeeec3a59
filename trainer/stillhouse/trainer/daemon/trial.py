"""Whether a student of a lineage is on trial: a fold of the topic `students`. Pure."""

from collections.abc import Iterable, Sequence

from stillhouse.schemas.facts import StudentStage
from stillhouse.schemas.route_state import RouteState, fold
from stillhouse.trainer.daemon.move import SECOND_US, Trial
from stillhouse.trainer.decisions import Record
from stillhouse.trainer.windows_types import State, Window


def on_trial(records: Iterable[Record], windows: Sequence[Window], grace_s: float) -> Trial | None:
    """The student that the next window must wait for; None when there is none.

    Whoever takes traffic on trial is waited for, also an older one. The newest student is waited for from its registration on: while
    it is released (shadow), and before that for as long as a controller may need to see it.

    Args:
        records: of the topic `students`.
        windows: of the lineage.
        grace_s: seconds after a registration in which a controller may take the student.
    """
    done = sorted((w for w in windows if w.state is State.REGISTERED), key=lambda w: w.plan.number)
    if not done:
        return None
    routes, ours, newest = list(fold(records).routes.values()), {w.student for w in done}, done[-1]
    for route in routes:
        if route.canary in ours:
            return Trial(why=f"{route.canary} is in canary{' (paused)' if route.paused else ''}: {route.share:.0%} of {route.route}")
    stages = {stage for route in routes if (stage := route.stages.get(newest.student)) is not None}
    if StudentStage.SHADOW in stages:
        return Trial(why=f"{newest.student} is in shadow{_where(routes, newest.student)}")
    if stages - {StudentStage.REGISTERED}:
        return None
    until = newest.history[-1][1] + round(grace_s * SECOND_US)
    return Trial(why=f"{newest.student} is registered: a controller has {grace_s:g} s to take it on trial", until=until)


def _where(routes: Iterable[RouteState], student: str) -> str:
    names = sorted(r.route for r in routes if r.stages.get(student) is StudentStage.SHADOW)
    return f" of {', '.join(names)}" if names else ""
