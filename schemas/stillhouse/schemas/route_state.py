"""What a route serves: a pure fold of the topic `students`, the same for everyone who reads it.

Each record is a decision on the state that its author had read, and names it: `prev` is the offset of the last record of that route
which was accepted (-1 before the first). A record on any other state is ignored, so of two controllers that decide at once exactly one
is followed, and everybody sees which. A registration decides nothing: it is accepted once for each student and moves no offset.
"""

from collections.abc import Iterable

import msgspec

from stillhouse.schemas.facts import StudentStage, StudentState

TERMINAL = frozenset({StudentStage.ROLLED_BACK, StudentStage.REVOKED, StudentStage.REJECTED})
_ENDS_SERVICE = TERMINAL | {StudentStage.RETIRED}


class RouteState(msgspec.Struct, frozen=True, kw_only=True):
    """One route, as of the last accepted record.

    Args:
        route: its name.
        offset: of the last accepted decision; the `prev` of the next one.
        champion: the student that serves; None: the teacher does.
        canary: the student on trial.
        share: 0…1 of the units go to the canary.
        stage_index: which stage of its ramp the canary is in.
        final: whether that is the stage of the final test, in which champion and teacher share the control half.
        first: offset of the canary's first record; -1 outside a canary.
        epoch: how often the allocation has changed within the experiment.
        paused: the canary stays at its share; only a rollback or a resume moves it.
        since: when the present stage began, microseconds since the epoch.
        started: when the experiment began; 0 outside a canary.
        plan: JSON object of what was frozen when the canary started; empty outside a canary.
        stages: every student that the topic has named, oldest first.
        ungated: students that a person released without the offline gate.
        opened: experiments whose final test has opened, oldest first: each has spent its part of the route's lifetime alpha.
    """

    route: str
    offset: int = -1
    champion: str | None = None
    canary: str | None = None
    share: float = 0.0
    stage_index: int = 0
    final: bool = False
    first: int = -1
    epoch: int = 0
    paused: bool = False
    since: int = 0
    started: int = 0
    plan: str = ""
    stages: dict[str, StudentStage] = {}
    ungated: tuple[str, ...] = ()
    opened: tuple[str, ...] = ()

    @property
    def experiment(self) -> str:
        """The salt of the assignment, new for each canary: route, student and the offset of its first record."""
        return self.route if self.canary is None else f"{self.route}/{self.canary}/{self.first}"

    def terminal(self, student: str) -> bool:
        """Whether this student's life on the route is over."""
        return self.stages.get(student) in TERMINAL


def apply(state: RouteState, offset: int, record: StudentState) -> RouteState:
    """The state after one record.

    Args:
        state: before it.
        offset: the record's, in the topic's one partition.
        record: of any route.

    Returns:
        A new state, or the same object when the record is ignored: it is of another route, was decided on another state, or does not
        fit that state (a second canary beside a running one, anything after a terminal stage).
    """
    if record.route != state.route:
        return state
    if record.stage is StudentStage.REGISTERED:
        return state if record.student in state.stages else _staged(state, record)
    if record.prev != state.offset or offset <= state.offset or state.terminal(record.student):
        return state
    if record.stage is StudentStage.CANARY:
        return _canary(state, offset, record)
    if record.stage is StudentStage.CHAMPION:
        return _crowned(state, offset, record)
    if record.stage in _ENDS_SERVICE:
        return _ended(state, offset, record)
    if record.stage is StudentStage.SHADOW:  # takes no traffic
        return state if record.student in (state.canary, state.champion) else _shadow(state, offset, record)
    # A stage from the future is followed without its effect, or nothing after it would be accepted here.
    return msgspec.structs.replace(state, offset=offset)


def accepted(state: RouteState, offset: int, record: StudentState) -> bool:
    """Whether `apply` would follow this record."""
    return apply(state, offset, record) is not state


def _staged(state: RouteState, record: StudentState, **changes: object) -> RouteState:
    return msgspec.structs.replace(state, stages=state.stages | {record.student: record.stage}, **changes)


def _shadow(state: RouteState, offset: int, record: StudentState) -> RouteState:
    others = tuple(name for name in state.ungated if name != record.student)
    return _staged(state, record, offset=offset, ungated=(*others, record.student) if record.skip_gate else others)


def _canary(state: RouteState, offset: int, record: StudentState) -> RouteState:
    """A canary starts, changes its stage, is paused or resumed."""
    if record.student == state.champion or state.canary not in (None, record.student) or not 0 < record.share < 1:
        return state
    changes: dict[str, object] = {
        "canary": record.student,
        "share": record.share,
        "stage_index": record.stage_index,
        "final": record.final,
        "paused": record.paused,
    }
    if state.canary is None:
        changes |= {"first": offset, "epoch": 0, "plan": record.plan, "since": record.decided_at, "started": record.decided_at}
    elif (record.share, record.final) != (state.share, state.final):
        changes |= {"epoch": state.epoch + 1, "since": record.decided_at}
    after = _staged(state, record, offset=offset, **changes)
    if after.final and after.experiment not in after.opened:
        return msgspec.structs.replace(after, opened=(*after.opened, after.experiment))
    return after


def _without_canary(offset: int, record: StudentState) -> dict[str, object]:
    nothing = {"canary": None, "share": 0.0, "stage_index": 0, "final": False, "paused": False, "first": -1, "epoch": 0, "plan": ""}
    return {**nothing, "started": 0, "offset": offset, "since": record.decided_at}


def _crowned(state: RouteState, offset: int, record: StudentState) -> RouteState:
    """The canary becomes champion, and the champion before it retires. Nobody is crowned past a running canary."""
    if state.canary != record.student:
        return state
    stages = dict(state.stages)
    if state.champion is not None:
        stages[state.champion] = StudentStage.RETIRED
    stages[record.student] = StudentStage.CHAMPION
    return msgspec.structs.replace(state, stages=stages, champion=record.student, **_without_canary(offset, record))


def _ended(state: RouteState, offset: int, record: StudentState) -> RouteState:
    """A student serves no longer: of the canary the traffic returns to the champion, of the champion to the teacher."""
    if record.student == state.canary:
        return _staged(state, record, **_without_canary(offset, record))
    if record.student == state.champion:
        # A running canary goes on against the teacher alone: other arms, so another epoch.
        changes: dict[str, object] = {"epoch": state.epoch + 1} if state.canary else {"since": record.decided_at}
        return _staged(state, record, offset=offset, champion=None, **changes)
    return _staged(state, record, offset=offset)


class RouteStates(msgspec.Struct, frozen=True):
    """All routes by name."""

    routes: dict[str, RouteState] = {}

    def of(self, route: str) -> RouteState:
        """One route; an empty state when the topic has not named it."""
        return self.routes.get(route) or RouteState(route=route)

    def apply(self, offset: int, record: StudentState) -> "RouteStates":
        """The states after one record; the same object when it is ignored. A record without a route is of none."""
        if not record.route:
            return self
        before = self.of(record.route)
        after = apply(before, offset, record)
        return self if after is before else RouteStates(self.routes | {record.route: after})


def fold(records: Iterable[tuple[int, StudentState]]) -> RouteStates:
    """All routes after these (offset, record) pairs, in the topic's order."""
    states = RouteStates()
    for offset, record in records:
        states = states.apply(offset, record)
    return states
