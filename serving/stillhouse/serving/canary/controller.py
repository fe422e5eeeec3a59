"""What a controller does with a route at one look: release, start, step, crown, roll back. Pure: state and traffic in, records out."""

from collections.abc import Mapping
from typing import Any

import msgspec

from stillhouse.schemas.assign import Arm
from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.facts import CanaryVerdict, StudentStage, StudentState
from stillhouse.schemas.route_state import RouteState
from stillhouse.serving.canary import decide
from stillhouse.serving.canary.decide import Decision, Look, Verdict
from stillhouse.serving.canary.experiment import Experiment, plan
from stillhouse.serving.canary.settings import SECOND, ControllerSettings, Terms
from stillhouse.serving.canary.tally import EpochTally
from stillhouse.serving.canary.traffic import History
from stillhouse.serving.canary.tripwires import Trip
from stillhouse.serving.canary.units import Scales

_STAGES = {
    Verdict.ADVANCE: StudentStage.CANARY,
    Verdict.PROMOTE: StudentStage.CHAMPION,
    Verdict.ROLLBACK: StudentStage.ROLLED_BACK,
    # Not counted as worse, but its time is over all the same: the same student is not tried again by itself.
    Verdict.EXPIRE: StudentStage.ROLLED_BACK,
}
_UPWARDS = (Verdict.ADVANCE, Verdict.PROMOTE)


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be written.

    Args:
        verdict: for `canary.verdicts`, written first, so that no decision is without its numbers.
        reason: of the verdict, in few distinct words.
        record: for `students`; None where everything stays as it is.
    """

    verdict: CanaryVerdict
    reason: str
    record: StudentState | None = None


def experiment_of(state: RouteState) -> Experiment:
    """What was frozen when the running canary started.

    Raises:
        ValidationError: the plan in the log is none.
    """
    return msgspec.structs.replace(msgspec.json.decode(state.plan, type=Experiment), name=state.experiment)


def waits_for(history: History, settings: ControllerSettings, terms: Terms) -> str | None:
    """Why no canary can start on this route; None when one can."""
    if not terms.sources:
        return "capture_only"
    teacher = history.of(Arm.TEACHER)
    if teacher.judged < settings.min_units:
        return "no_history"
    return "no_teacher_success" if history.price_usd <= 0 and teacher.money.success == 0 else None


def release(student: str, state: RouteState, *, by: str, reason: str, at: int, skip_gate: bool = False) -> StudentState:
    """The record that puts a student up for a canary."""
    return StudentState(
        student=student, stage=StudentStage.SHADOW, route=state.route, reason=reason, decided_by=by, decided_at=at, skip_gate=skip_gate
    )


def start(
    student: str, state: RouteState, history: History, settings: ControllerSettings, terms: Terms, *, by: str, reason: str, at: int
) -> StudentState:
    """The record that starts a canary, with everything that is frozen for it."""
    frozen = plan(
        name="",  # of its own record's offset, which only the log knows
        route=state.route,
        student=student,
        champion=state.champion is not None,
        settings=settings.of_canary(terms.holdback),
        scales=Scales(step_cap=settings.step_cap, budget_usd=terms.budget_usd, price_usd=history.price_usd, source=terms.sources[0]),
        version=1 + len(state.opened),
        units_per_day=history.units_per_day,
        history=history.moments,
        coverage=history.coverage,
    )
    return StudentState(
        student=student,
        stage=StudentStage.CANARY,
        route=state.route,
        share=frozen.stages[0],
        final=frozen.is_last(0),
        reason=reason,
        decided_by=by,
        decided_at=at,
        plan=msgspec.json.encode(frozen).decode(),
    )


def look(state: RouteState, epochs: tuple[EpochTally, ...], watermark: int, trip: Trip | None) -> Decision:
    """Weigh a running canary.

    Args:
        state: with a canary.
        epochs: its sums, matured at this watermark.
        watermark: microseconds since the epoch: the only clock, so a backlog or an outage ages nothing.
        trip: a trip-wire, if one has tripped.
    """
    frozen = experiment_of(state)
    now = max(watermark, state.since)  # records carry their author's wall clock, which is ahead of the log's
    times = {"now": now / SECOND, "started": state.started / SECOND, "stage_started": state.since / SECOND}
    return decide.decide(frozen, Look(stage=state.stage_index, epochs=epochs, trip=trip, **times))


def move(state: RouteState, decision: Decision, *, by: str, at: int, excluded: Mapping[str, int]) -> Move:
    """What a decision writes: its verdict, and the student's next stage where it is to change.

    Args:
        state: that it was decided on.
        decision: of `look`.
        by: the author, as both records name it.
        at: microseconds since the epoch.
        excluded: units whose assignment was broken, by reason.
    """
    assert state.canary is not None
    holds = state.paused and decision.verdict in _UPWARDS
    found = Verdict.HOLD if holds else decision.verdict
    reason = "paused" if holds else decision.reason
    told = {"reason": reason, "experiment": state.experiment, "prev": state.offset, "by": by, "excluded": dict(excluded)}
    verdict = CanaryVerdict(
        student=state.canary,
        route=state.route,
        verdict=found.value,
        epoch=state.epoch,
        numbers=msgspec.json.encode(told | decision.numbers).decode(),
        alpha_before=decision.alpha_before,
        alpha_after=decision.alpha_after,
        decided_at=at,
    )
    record = None if found is Verdict.HOLD else _next(state, found, reason, by, at)
    return Move(verdict=verdict, reason=reason, record=record)


def wire(state: RouteState, trip: Trip, numbers: Mapping[str, Any], *, by: str, at: int) -> Move:
    """What a wire writes that somebody else than the controller saw trip. It needs no sums, so it needs no controller.

    Args:
        state: with a canary.
        trip: which wire.
        numbers: what tripped it.
        by: the author, as both records name it.
        at: microseconds since the epoch.
    """
    assert state.canary is not None
    try:
        before, after = decide.budget(experiment_of(state), state.stage_index)
    except (msgspec.MsgspecError, PermanentError):  # started by something that froze no plan: it goes all the same
        before = after = 0.0
    told = {"reason": trip.value, "experiment": state.experiment, "prev": state.offset, "by": by}
    verdict = CanaryVerdict(
        student=state.canary,
        route=state.route,
        verdict=Verdict.ROLLBACK.value,
        epoch=state.epoch,
        numbers=msgspec.json.encode(told | dict(numbers)).decode(),
        alpha_before=before,
        alpha_after=after,
        decided_at=at,
    )
    return Move(verdict=verdict, reason=trip.value, record=_next(state, Verdict.ROLLBACK, trip.value, by, at))


def _next(state: RouteState, verdict: Verdict, reason: str, by: str, at: int) -> StudentState:
    assert state.canary is not None
    record = StudentState(
        student=state.canary, stage=_STAGES[verdict], route=state.route, reason=f"{verdict}: {reason}", decided_by=by, decided_at=at
    )
    if verdict is not Verdict.ADVANCE:
        return record
    frozen, stage = experiment_of(state), state.stage_index + 1
    return msgspec.structs.replace(record, stage_index=stage, share=frozen.stages[stage], final=frozen.is_last(stage))
