"""What a route serves: one state for everyone who reads the topic, whoever wrote into it and in what order."""

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.schemas.facts import StudentStage, StudentState
from stillhouse.schemas.route_state import TERMINAL, RouteState, RouteStates, accepted, apply, fold

ROUTES, STUDENTS = ("desk", "mail"), ("student-1", "student-2", "student-3")
CANARY, CHAMPION = StudentStage.CANARY, StudentStage.CHAMPION

Log = list[tuple[int, StudentState]]


def record(stage: StudentStage, student: str = "student-1", prev: int = -1, **fields: object) -> StudentState:
    share = 0.1 if stage is CANARY else 0.0
    return msgspec.convert({"student": student, "stage": stage, "route": "desk", "prev": prev, "share": share, **fields}, StudentState)


def log(*records: StudentState, start: int = 10) -> Log:
    return list(enumerate(records, start))


RECORDS = st.lists(
    st.builds(
        StudentState,
        student=st.sampled_from(STUDENTS),
        stage=st.sampled_from(StudentStage),
        route=st.sampled_from((*ROUTES, "")),
        share=st.sampled_from((0.0, 0.05, 0.5, 1.0)),
        prev=st.integers(-1, 30),
        final=st.booleans(),
        paused=st.booleans(),
        decided_at=st.integers(0, 5),
    ),
    max_size=30,
)


class Author:
    """A controller that decides on what it has read so far, which may be old."""

    def __init__(self, route: str) -> None:
        self.route, self.read = route, 0

    def catch_up(self, topic: Log) -> None:
        self.read = len(topic)

    def write(self, topic: Log, student: str, stage: StudentStage, share: float) -> None:
        state = fold(topic[: self.read]).of(self.route)
        topic.append((len(topic), record(stage, student, state.offset, route=self.route, share=share)))


STEPS = st.lists(
    st.tuples(st.integers(0, 1), st.booleans(), st.sampled_from(STUDENTS), st.sampled_from(StudentStage), st.sampled_from((0.1, 0.5))),
    max_size=40,
)


def played(steps: Sequence[tuple[int, bool, str, StudentStage, float]]) -> Log:
    topic: Log = []
    authors = (Author("desk"), Author("desk"))
    for who, reads, student, stage, share in steps:
        if reads:
            authors[who].catch_up(topic)
        authors[who].write(topic, student, stage, share)
    return topic


@given(STEPS)
def test_of_two_controllers_only_one_decides_on_any_state(steps: Sequence[tuple[int, bool, str, StudentStage, float]]) -> None:
    topic = played(steps)
    states, followed = RouteStates(), list[StudentState]()
    for offset, written in topic:
        before = states.of("desk")
        states = states.apply(offset, written)
        if states.of("desk").offset != before.offset:
            assert written.prev == before.offset
            followed.append(written)
    assert len({written.prev for written in followed}) == len(followed)
    # What lost is as if it had not been written.
    kept = [(o, r) for o, r in topic if any(r is f for f in followed) or r.stage is StudentStage.REGISTERED]
    assert fold(kept) == states


@given(RECORDS, st.data())
def test_a_replay_changes_nothing(records: list[StudentState], data: st.DataObject) -> None:
    topic = list(enumerate(records))
    states = fold(topic)
    start = data.draw(st.integers(0, len(topic)))
    for offset, written in topic[start:]:
        assert states.apply(offset, written) is states


@given(RECORDS)
def test_terminal_stays_terminal_and_no_offset_goes_back(records: list[StudentState]) -> None:
    states = RouteStates()
    for offset, written in enumerate(records):
        before, states = states, states.apply(offset, written)
        for route in ROUTES:
            old, new = before.of(route), states.of(route)
            assert new.offset >= old.offset
            assert {s: new.stages[s] for s, stage in old.stages.items() if stage in TERMINAL}.items() <= old.stages.items()
            assert not any(new.terminal(s) for s in (new.canary, new.champion) if s)


@given(RECORDS)
def test_a_state_is_always_whole(records: list[StudentState]) -> None:
    for state in fold(enumerate(records)).routes.values():
        serving = {s for s, stage in state.stages.items() if stage in (CANARY, CHAMPION)}
        assert serving == {s for s in (state.canary, state.champion) if s}
        assert state.canary is None or state.canary != state.champion
        if state.canary is None:
            assert (state.share, state.epoch, state.first, state.final, state.paused) == (0.0, 0, -1, False, False)
            assert state.experiment == state.route
        else:
            assert 0 < state.share < 1
            assert not state.final or state.experiment in state.opened


@given(RECORDS)
def test_routes_know_nothing_of_each_other(records: list[StudentState]) -> None:
    topic = list(enumerate(records))
    for route in ROUTES:
        assert fold(topic).of(route) == fold([(o, r) for o, r in topic if r.route == route]).of(route)


def test_a_whole_life() -> None:
    topic = log(
        record(StudentStage.REGISTERED),
        record(StudentStage.SHADOW),
        record(CANARY, prev=11, share=0.01, decided_at=100, plan="{}"),
        record(CANARY, prev=12, share=0.5, stage_index=4, final=True, decided_at=200),
        record(CHAMPION, prev=13, decided_at=300),
    )
    assert fold(topic[:2]).of("desk").stages == {"student-1": StudentStage.SHADOW}
    started = fold(topic[:3]).of("desk")
    assert (started.canary, started.share, started.experiment, started.epoch) == ("student-1", 0.01, "desk/student-1/12", 0)
    assert (started.since, started.started, started.plan, started.opened) == (100, 100, "{}", ())
    last = fold(topic[:4]).of("desk")
    assert (last.experiment, last.epoch, last.stage_index, last.final) == ("desk/student-1/12", 1, 4, True)
    assert (last.since, last.started, last.plan, last.opened) == (200, 100, "{}", ("desk/student-1/12",))
    crowned = fold(topic).of("desk")
    assert (crowned.champion, crowned.canary, crowned.experiment, crowned.epoch, crowned.since) == ("student-1", None, "desk", 0, 300)
    assert crowned.opened == ("desk/student-1/12",)


def test_a_pause_changes_no_allocation_and_no_age() -> None:
    topic = log(record(CANARY, decided_at=100, plan="{}"), record(CANARY, prev=10, paused=True, decided_at=200))
    state = fold(topic).of("desk")
    assert (state.paused, state.epoch, state.since, state.plan, state.experiment) == (True, 0, 100, "{}", "desk/student-1/10")


@pytest.mark.parametrize("stage", [StudentStage.ROLLED_BACK, StudentStage.REVOKED, StudentStage.REJECTED])
def test_a_rolled_back_canary_leaves_the_champion(stage: StudentStage) -> None:
    topic = log(record(CANARY), record(CHAMPION, prev=10), record(CANARY, "student-2", 11), record(stage, "student-2", 12))
    state = fold(topic).of("desk")
    assert (state.champion, state.canary, state.share, state.experiment) == ("student-1", None, 0.0, "desk")
    assert not accepted(state, 20, record(CANARY, "student-2", state.offset))


def test_a_revoked_champion_leaves_the_teacher_and_a_canary_in_a_new_epoch() -> None:
    topic = log(record(CANARY), record(CHAMPION, prev=10), record(CANARY, "student-2", 11), record(StudentStage.REVOKED, prev=12))
    state = fold(topic).of("desk")
    assert (state.champion, state.canary, state.epoch, state.experiment) == (None, "student-2", 1, "desk/student-2/12")


def test_a_champion_that_is_replaced_retires_and_may_come_back() -> None:
    topic = log(record(CANARY), record(CHAMPION, prev=10), record(CANARY, "student-2", 11), record(CHAMPION, "student-2", 12))
    state = fold(topic).of("desk")
    assert state.stages == {"student-1": StudentStage.RETIRED, "student-2": CHAMPION}
    assert accepted(state, 14, record(CANARY, "student-1", state.offset))


def test_what_does_not_fit_the_state_is_ignored() -> None:
    running = fold(log(record(CANARY))).of("desk")
    for unfit in (
        record(CANARY, "student-2", 10),  # one canary at a time
        record(CHAMPION, "student-2", 10),  # nobody is crowned past it
        record(CANARY, prev=10, share=1.0),  # no control left
        record(CANARY, prev=9),  # decided on another state
        record(CANARY, prev=10, route="mail"),
        record(StudentStage.REGISTERED, prev=10),
        record(StudentStage.SHADOW, route=""),
    ):
        assert apply(running, 11, unfit) is running
    assert not accepted(RouteState(route="desk"), 3, record(CHAMPION))


def test_a_stage_from_the_future_is_followed_without_its_effect() -> None:
    running = fold(log(record(CANARY))).of("desk")
    later = apply(running, 11, record(StudentStage.UNKNOWN, prev=10))
    assert (later.offset, later.canary, later.stages) == (11, "student-1", running.stages)
    assert accepted(later, 12, record(CANARY, prev=11, share=0.2))


def test_a_release_without_the_gate_is_remembered_until_it_is_taken_back() -> None:
    topic = log(record(StudentStage.SHADOW, skip_gate=True), record(StudentStage.SHADOW, prev=10))
    assert fold(topic[:1]).of("desk").ungated == ("student-1",)
    assert fold(topic).of("desk").ungated == ()


def test_a_registration_decides_nothing() -> None:
    state = fold(log(record(CANARY), record(StudentStage.REGISTERED, "student-2"))).of("desk")
    assert state.offset == 10
    assert list(state.stages) == ["student-1", "student-2"]
