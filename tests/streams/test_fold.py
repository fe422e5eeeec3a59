"""The fold is a pure function of the set of events."""

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.schemas.errors import PermanentError, UsageError
from stillhouse.schemas.event_set import Member, event_set, pack, unpack
from stillhouse.schemas.events import (
    AgentEvent,
    Assignment,
    ClientReport,
    FeedbackGiven,
    FeedbackSource,
    Outcome,
    Policy,
    PolicyRole,
    TrajectoryEnded,
    TrajectoryStarted,
)
from stillhouse.schemas.fold import ERASED, fold
from stillhouse.schemas.messages import Message
from stillhouse.schemas.trajectory import Status
from tests.support.events import STUDENT, TEACHER, event, fallback, feedback, step, trajectory

TOOL = Message(role="tool", tool_call_id="c0-0", content="yes")
USER = Message(role="user", content="and now?")


def _any_event() -> st.SearchStrategy[AgentEvent]:
    index = st.one_of(st.none(), st.integers(0, 4))
    message = st.sampled_from([TOOL, USER, Message(role="tool", tool_call_id="c1-0", content="no")])
    messages = st.lists(message, max_size=3).map(tuple)
    errors = st.sampled_from([None, "timeout", "format: no call"])
    bodies = st.one_of(
        st.builds(lambda i, s, o, e: step(i, state=s, observation=o, error=e), index, messages, messages, errors),
        st.builds(TrajectoryStarted, attempt=st.integers(1, 3)),
        st.builds(TrajectoryEnded, steps=index, outcome=st.sampled_from(Outcome)),
        st.builds(
            FeedbackGiven,
            source=st.sampled_from(FeedbackSource),
            outcome=st.sampled_from(Outcome),
            reward=st.one_of(st.none(), st.floats(-1, 1)),
            step=index,
            revises=st.one_of(st.none(), st.sampled_from("abcdef")),
            retracted=st.booleans(),
        ),
        st.builds(ClientReport, dropped=st.just({"queue_full": 1})),
    )
    return st.builds(
        AgentEvent,
        event_id=st.sampled_from("abcdefghij"),
        tenant=st.just("acme"),
        trajectory_id=st.just("t"),
        occurred_at=st.integers(0, 6),
        body=bodies,
        policy=st.sampled_from([STUDENT, TEACHER, Policy()]),
    )


EVENTS = st.lists(_any_event(), min_size=1, max_size=12).filter(lambda es: any(type(e.body) is not ClientReport for e in es))


@given(EVENTS, st.randoms(use_true_random=False))
def test_no_order_and_no_duplicate_shows(events: list[AgentEvent], rng: random.Random) -> None:
    again = [*events, *rng.choices(events, k=5)]
    rng.shuffle(again)
    assert fold(again) == fold(events)


@given(EVENTS)
def test_it_survives_storage(events: list[AgentEvent]) -> None:
    members = event_set(events)
    stored = unpack(pack("acme/t", members.values())[1])
    assert stored == members
    assert fold(one.event for one in stored.values()) == fold(events)


@given(EVENTS, EVENTS)
def test_a_union_only_adds(some: list[AgentEvent], more: list[AgentEvent]) -> None:
    before, after = fold(some), fold([*some, *more])
    assert after.revision >= before.revision
    assert (after.content == before.content) == (event_set(more).keys() <= event_set(some).keys())


@given(EVENTS)
@settings(max_examples=50)
def test_chunks_in_any_order_are_one_row(events: list[AgentEvent]) -> None:
    chunks = [unpack(pack("acme/t", event_set([one]).values())[1]) for one in events]
    forward: dict[bytes, Member] = {}
    backward: dict[bytes, Member] = {}
    for chunk in chunks:
        forward |= chunk
    for chunk in reversed(chunks):
        backward |= chunk
    assert fold(m.event for m in forward.values()) == fold(m.event for m in backward.values())


def test_a_whole_run_is_ended_and_in_order() -> None:
    events = trajectory(1, steps=3)
    found = fold(reversed(events))
    assert (found.status, found.status_reason, found.headless, found.revision) == (Status.ENDED, "", False, 5)
    assert [s.index for s in found.steps] == [0, 1, 2]
    assert (found.outcome, found.outcome_source, found.reward) == (Outcome.SUCCESS, "ended", 1.0)
    assert [m.role for m in found.messages()] == ["system", *["assistant", "tool"] * 3]


@pytest.mark.parametrize(
    ("left_out", "reason"), [({1}, "step 1 of 6 missing"), ({0, 2, 3, 4}, "steps 0, 2-4 of 6 missing"), ({4, 5}, "steps 4-5 of 6 missing")]
)
def test_a_missing_step_is_named(left_out: set[int], reason: str) -> None:
    events = [e for e in trajectory(1, steps=6) if getattr(e.body, "index", -1) not in left_out]
    found = fold(events)
    assert (found.status, found.status_reason) == (Status.INCOMPLETE, reason)


def test_without_an_end_it_is_unended_and_without_a_start_headless() -> None:
    events = trajectory(1)
    assert fold(events[:-1]).status is Status.UNENDED
    assert fold(events[1:]).headless
    only = fold([feedback(1, Outcome.FAILURE)])
    assert (only.status, only.headless, only.outcome, only.steps) == (Status.UNENDED, True, Outcome.FAILURE, ())


def test_of_two_events_for_one_index_the_later_counts() -> None:
    late = event(step(1, order=99), 1, at=77)
    found = fold([late, *trajectory(1)])
    assert found.steps[1].event_id == late.event_id
    assert (found.superseded, found.status, len(found.steps)) == (1, Status.ENDED, 3)


def test_two_versions_of_one_event_have_one_winner_and_are_counted() -> None:
    events = trajectory(1)
    twin = AgentEvent(event_id=events[1].event_id, tenant="acme", trajectory_id="t-1", occurred_at=events[1].occurred_at, body=step(0, 5))
    one, other = fold([*events, twin]), fold([twin, *events])
    assert one == other
    assert (one.superseded, one.revision, len(one.steps)) == (1, 6, 3)


def test_without_indices_time_places_a_step_and_the_count_is_complete() -> None:
    bodies = [(TrajectoryStarted(), 0), (step(None, 3), 30), (step(None, 1), 10), (step(None, 2), 20), (TrajectoryEnded(steps=3), 40)]
    events = [event(body, at=at) for body, at in bodies]
    found = fold(events)
    assert [s.occurred_at % 100 for s in found.steps] == [10, 20, 30]
    assert found.status is Status.ENDED
    short = fold(events[:3] + events[4:])
    assert (short.status, short.status_reason) == (Status.INCOMPLETE, "1 of 3 steps missing")


def test_a_step_without_an_index_goes_between_indexed_ones_by_time() -> None:
    events = [event(step(0, 1), at=10), event(step(None, 9), at=15), event(step(1, 2), at=20)]
    assert [s.occurred_at % 100 for s in fold(events).steps] == [10, 15, 20]


def test_leading_tool_messages_answer_the_step_before() -> None:
    events = [event(step(0, observation=()), at=1), event(step(1, state=(TOOL, USER), observation=()), at=2)]
    first, second = fold(events).steps
    assert (first.observation, second.state) == ((TOOL,), (USER,))


def test_what_both_ways_in_report_is_said_once() -> None:
    events = [event(step(0, observation=(TOOL,)), at=1), event(step(1, state=(TOOL, USER), observation=()), at=2)]
    first, second = fold(events).steps
    assert (first.observation, second.state) == ((TOOL,), (USER,))


def test_nothing_moves_over_a_gap() -> None:
    events = [event(step(0, observation=()), at=1), event(step(2, state=(TOOL,), observation=()), at=2)]
    first, second = fold(events).steps
    assert (first.observation, second.state) == ((), (TOOL,))


def _word(source: FeedbackSource, outcome: Outcome, at: int, **changes: object) -> AgentEvent:
    return feedback(1, outcome, at, source=source, **changes)  # type: ignore[arg-type]


def test_the_most_trusted_source_decides_whenever_it_spoke() -> None:
    events = trajectory(1)
    user = _word(FeedbackSource.USER, Outcome.SUCCESS, 300)
    judge = _word(FeedbackSource.JUDGE, Outcome.SUCCESS, 400)
    verifier = _word(FeedbackSource.VERIFIER, Outcome.FAILURE, 100, reward=-2.5)
    found = fold([*events, judge, user, verifier])
    assert (found.outcome, found.outcome_source, found.reward) == (Outcome.FAILURE, "verifier", -2.5)
    assert [j.source for j in found.judgements] == ["verifier", "user", "judge"]


def test_a_retracted_word_does_not_count_and_a_revised_one_is_replaced() -> None:
    events = trajectory(1, outcome=Outcome.FAILURE)
    first = _word(FeedbackSource.USER, Outcome.SUCCESS, 100)
    assert fold([*events, first]).outcome is Outcome.SUCCESS
    retracted = _word(FeedbackSource.USER, Outcome.UNKNOWN, 200, revises=first.event_id, retracted=True)
    assert fold([*events, first, retracted]).outcome_source == "ended"
    revised = _word(FeedbackSource.USER, Outcome.ABORTED, 50, revises=first.event_id)
    assert fold([*events, first, revised]).outcome is Outcome.ABORTED
    stranger = _word(FeedbackSource.JUDGE, Outcome.UNKNOWN, 200, revises=first.event_id, retracted=True)
    assert fold([*events, first, stranger]).outcome is Outcome.SUCCESS


def test_a_word_on_a_step_or_a_label_leaves_the_outcome() -> None:
    events = trajectory(1)
    on_step = _word(FeedbackSource.VERIFIER, Outcome.FAILURE, 100, step=1)
    label = _word(FeedbackSource.VERIFIER, Outcome.UNKNOWN, 100, label="rude")
    found = fold([*events, on_step, label])
    assert (found.outcome, found.outcome_source) == (Outcome.SUCCESS, "ended")
    assert len(found.judgements) == 2


def test_client_reports_are_no_part_of_it() -> None:
    events = trajectory(1)
    assert fold([*events, event(ClientReport(dropped={"too_large": 2}), 1)]) == fold(events)
    with pytest.raises(UsageError):
        fold([event(ClientReport(), 1)])


def test_events_of_two_trajectories_are_refused() -> None:
    with pytest.raises(PermanentError, match="several trajectories"):
        fold([*trajectory(1), *trajectory(2)])


def test_an_erased_subject_leaves_a_tombstone_without_text() -> None:
    events = [event(TrajectoryStarted(subject="s1", system_prompt="secret"), 1), *trajectory(1)[1:]]
    found = fold(events, erased={"s1"}.__contains__)
    assert (found.status, found.status_reason, found.content, found.revision) == (Status.FAILED, ERASED, ERASED, 0)
    assert found.messages() == ()
    assert fold(events, erased={"s2"}.__contains__).status is Status.ENDED


def test_policies_are_listed_and_the_first_assignment_counts() -> None:
    student = Policy(role=PolicyRole.STUDENT, model="small", version="2")
    arms = [Assignment(route="r", unit="u", experiment="e", arm=arm, epoch=0) for arm in ("student", "teacher")]
    events = [
        AgentEvent(event_id=str(k), tenant="acme", trajectory_id="t", occurred_at=k, body=step(k), policy=policy, assignment=arms[k])
        for k, policy in enumerate([student, Policy(role=PolicyRole.TEACHER, model="big")])
    ]
    found = fold(events)
    assert [p.role for p in found.policies] == [PolicyRole.STUDENT, PolicyRole.TEACHER]
    assert found.assignment == arms[0]


def test_a_students_failed_answers_are_kept_behind_the_teachers() -> None:
    plain = trajectory(1)
    found = fold([*plain, fallback(1, 1), fallback(1, 2, "timeout")])
    assert (found.superseded, found.malformed) == (2, 1)
    assert found.policies == (TEACHER, STUDENT)
    assert found.steps == fold(plain).steps


def test_a_students_action_that_a_retry_replaced_is_no_failure() -> None:
    good = msgspec.structs.replace(event(step(1, 3), 1, at=1, suffix="first"), policy=STUDENT)
    found = fold([*trajectory(1), good])
    assert (found.superseded, found.malformed, found.policies) == (1, 0, (TEACHER,))
