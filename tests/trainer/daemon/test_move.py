"""What the daemon does next: a table of circumstances, and properties that hold in all of them."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.trainer.daemon.move import SECOND_US, Facts, Failure, Move, Trial, backoff_s, next_move
from stillhouse.trainer.settings import TrainerSettings, WindowSettings
from stillhouse.trainer.windows_pool import HOUR_US

WINDOW, TRAINER = WindowSettings(), TrainerSettings()
NOW = 1_000 * HOUR_US


def facts(**changes: Any) -> Facts:
    fields: dict[str, Any] = {"now": NOW, "mark": "m"}
    return Facts(**(fields | changes))


def failed(passing: bool, **changes: Any) -> Failure:
    fields: dict[str, Any] = {"times": 1, "at": NOW, "passing": passing, "what": "the store is away", "mark": "m", "ready": 120}
    return Failure(**(fields | changes))


def move(found: Facts) -> Move:
    return next_move(found, WINDOW, TRAINER)


def test_it_waits_and_says_for_how_many_and_how_long() -> None:
    assert move(facts()) == Move(run=False, why="0 of 100 new successes")
    found = move(facts(ready=37, oldest=NOW - 2 * HOUR_US))
    assert found == Move(run=False, why="37 of 100 new successes, oldest 2.0 of 24 h old")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"ready": 100, "oldest": NOW}, "100 new successes"),
        ({"ready": 1, "oldest": NOW - 25 * HOUR_US}, "new successes are 25.0 hours old"),
        ({"ready": 20, "requests": (("coverage", "120 requests were uncovered"),)}, "120 requests were uncovered"),
        ({"open": "desk-000002 is trained"}, "desk-000002 is trained: it goes on"),
        (
            {"open": "desk-000002 is trained", "trial": Trial(why="student-1 is in canary: 10% of desk")},
            "desk-000002 is trained: it goes on",
        ),
    ],
)
def test_it_runs_when_a_window_is_due_asked_for_or_open(changes: dict[str, Any], why: str) -> None:
    assert move(facts(**changes)) == Move(run=True, why=why)


def test_a_hint_does_not_overrule_its_own_count_and_a_request_needs_something_to_learn() -> None:
    assert not move(facts(ready=50, requests=(("successes", "100 new successes"), ("age", "old")))).run
    found = move(facts(ready=3, requests=(("failures", "refund fails at 40 %"),)))
    assert found == Move(run=False, why="3 of 100 new successes, a window was asked for (refund fails at 40 %), at 20 it begins")


def test_a_student_on_trial_is_waited_for_and_a_registered_one_for_a_while() -> None:
    trial = Trial(why="student-2 is in canary: 10% of desk")
    assert move(facts(ready=500, trial=trial)) == Move(run=False, why=trial.why)
    grace = Trial(why="student-2 is registered", until=NOW + 1)
    assert not move(facts(ready=500, trial=grace)).run
    assert move(facts(ready=500, trial=grace, now=NOW + 1)).run


def test_what_passes_is_tried_again_later_and_later() -> None:
    due = {"ready": 120, "oldest": NOW}
    found = move(facts(**due, failure=failed(True)))
    assert found == Move(run=False, why="the last job failed and is tried again in 30 s: the store is away")
    assert move(facts(**due, failure=failed(True), now=NOW + 30 * SECOND_US)).run
    often = failed(True, times=4)
    assert "4 times and is tried again in 4 min" in move(facts(**due, failure=often)).why
    assert [backoff_s(n, TRAINER) for n in (1, 2, 3, 20, 10_000)] == [30, 60, 120, 3600, 3600]


def test_what_does_not_pass_waits_for_a_change_and_never_for_time() -> None:
    due, failure = {"ready": 120, "oldest": NOW}, failed(False)
    assert "waits for changed settings or data: the store is away" in move(facts(**due, failure=failure)).why
    assert not move(facts(**due, failure=failure, now=NOW + 10_000 * HOUR_US)).run
    assert move(facts(**due, failure=failure, mark="other settings")).run
    assert not move(facts(ready=219, failure=failure)).run
    assert move(facts(ready=220, failure=failure)).run


@given(
    ready=st.integers(0, 300),
    age=st.none() | st.integers(0, 48 * HOUR_US),
    open=st.sampled_from(["", "w is claimed"]),
    trial=st.none() | st.just(Trial(why="on trial")),
    requests=st.lists(st.sampled_from([("failures", "f"), ("age", "a")]), max_size=2),
    failure=st.none() | st.builds(failed, st.booleans(), times=st.integers(1, 9)),
)
def test_every_move_has_a_reason_and_a_fresh_failure_never_runs(
    ready: int, age: int | None, open: str, trial: Trial | None, requests: list[tuple[str, str]], failure: Failure | None
) -> None:
    oldest = NOW - age if age is not None and ready else None
    found = facts(ready=ready, oldest=oldest, open=open, trial=trial, requests=tuple(requests), failure=failure)
    made = move(found)
    assert made.why
    if failure is not None and (failure.passing or ready < failure.ready + WINDOW.min_kept):
        assert not made.run
    if made.run and not open:
        assert ready and trial is None
    assert move(msgspec.structs.replace(found, ready=ready)) == made
