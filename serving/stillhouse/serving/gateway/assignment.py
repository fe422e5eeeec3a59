"""Who answers: the arm that a unit is assigned to, once, and the variant that serves an arm now. Pure."""

from enum import StrEnum
from functools import lru_cache

import msgspec

from stillhouse.schemas.assign import Arm, Shares, assign, idle_shares, stage_shares
from stillhouse.schemas.route_state import RouteState

TEACHER = "teacher"
"""The variant that is no student."""


class Why(StrEnum):
    """Why a request is served by another than its arm's variant, for headers and metrics."""

    ASSIGNED = ""
    UNENROLLED = "unenrolled"
    TAKEN_OVER = "taken_over"
    NOT_READY = "not_ready"
    UNCOVERED = "uncovered"


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """The arm of a unit, and the student whose arm it is."""

    experiment: str
    arm: str
    epoch: int
    student: str | None


class _Settings(msgspec.Struct, frozen=True):
    holdback: float | None = None


class _Plan(msgspec.Struct, frozen=True):
    """What of a canary's plan an allocation goes by."""

    settings: _Settings = _Settings()


@lru_cache(maxsize=256)  # every request asks, and a route's plan is the same for weeks
def _planned_holdback(plan: str) -> float | None:
    try:
        return msgspec.json.decode(plan, type=_Plan).settings.holdback
    except msgspec.MsgspecError:
        return None


def shares_of(state: RouteState, holdback: float) -> Shares:
    """The allocation of a route as it is now.

    Args:
        state: of the route.
        holdback: as the settings say it. While a canary runs, the one that its plan froze stands: another would change the allocation
            within an epoch, and the controller reckons with the frozen one.
    """
    champion = state.champion is not None
    if state.canary is None:
        return idle_shares(champion=champion, holdback=holdback, route=state.route)
    planned = _planned_holdback(state.plan)
    holdback = holdback if planned is None else planned
    share = min(state.share, 1 - holdback)  # what no controller decides must not stop the teacher's traffic either
    return stage_shares(share, champion=champion, last=state.final, holdback=holdback, route=state.route)


def place(state: RouteState, unit: str, holdback: float) -> Placed:
    """The arm of a unit that is new to the experiment."""
    arm = assign(unit, state.experiment, shares_of(state, holdback))
    student = {Arm.CANARY: state.canary, Arm.CHAMPION: state.champion}.get(arm)
    return Placed(experiment=state.experiment, arm=str(arm), epoch=state.epoch, student=student)


def unenrolled(state: RouteState) -> Placed:
    """Where a request without a unit goes: to the champion, or to the teacher while there is none."""
    arm = Arm.TEACHER if state.champion is None else Arm.CHAMPION
    return Placed(experiment=state.experiment, arm=str(arm), epoch=state.epoch, student=state.champion)


def variant(state: RouteState, arm: str, student: str | None) -> tuple[str, Why]:
    """Who serves an arm now.

    A stage change moves nobody. What a rollback or a newer champion took the student from is served by the champion, else the teacher.
    """
    if arm == Arm.TEACHER or student is None:
        return TEACHER, Why.ASSIGNED
    if student in (state.canary, state.champion):
        return student, Why.ASSIGNED
    return state.champion or TEACHER, Why.TAKEN_OVER
