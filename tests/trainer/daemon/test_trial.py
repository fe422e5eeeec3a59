"""Who is on trial, by what the topic `students` says."""

from typing import Any

from stillhouse.schemas.facts import StudentStage, StudentState
from stillhouse.trainer.daemon.move import SECOND_US, Trial
from stillhouse.trainer.daemon.trial import on_trial
from stillhouse.trainer.decisions import Record, barred
from stillhouse.trainer.windows_types import State, Window, WindowPlan


def window(number: int, student: str) -> Window:
    plan = WindowPlan(key=f"desk-{number:06d}", lineage="desk", number=number, mode="fresh", why="")
    return Window(plan=plan, state=State.REGISTERED, student=student, history=((State.REGISTERED, number),))


def record(offset: int, student: str, stage: StudentStage, **more: Any) -> Record:
    return offset, StudentState(student=student, stage=stage, route="desk", **more)


ONE = [window(1, "student-1")]
LIFE = [record(0, "student-1", StudentStage.REGISTERED), record(1, "student-1", StudentStage.SHADOW)]
CANARY = [*LIFE, record(2, "student-1", StudentStage.CANARY, prev=1, share=0.1)]


def test_without_a_student_nobody_is_waited_for() -> None:
    assert on_trial(CANARY, [], 600) is None


def test_a_registered_student_has_a_grace_and_then_a_trial_until_its_verdict() -> None:
    until = 1 + 600 * SECOND_US
    assert on_trial(LIFE[:1], ONE, 600) == Trial(why="student-1 is registered: a controller has 600 s to take it on trial", until=until)
    assert on_trial(LIFE, ONE, 600) == Trial(why="student-1 is in shadow of desk")
    assert on_trial(CANARY, ONE, 600) == Trial(why="student-1 is in canary: 10% of desk")
    for stage in (StudentStage.CHAMPION, StudentStage.ROLLED_BACK, StudentStage.REVOKED):
        assert on_trial([*CANARY, record(3, "student-1", stage, prev=2)], ONE, 600) is None


def test_a_decision_on_another_state_is_none() -> None:
    assert on_trial([*CANARY, record(3, "student-1", StudentStage.ROLLED_BACK, prev=0)], ONE, 600) is not None


def test_an_older_student_that_takes_traffic_is_waited_for_and_a_stranger_is_not() -> None:
    both = [*ONE, window(2, "student-2")]
    assert on_trial(CANARY, both, 600) == Trial(why="student-1 is in canary: 10% of desk")
    other = [window(1, "student-9")]
    waits = on_trial(CANARY, other, 600)
    assert waits is not None and waits.until is not None


def test_who_was_only_worse_than_the_teacher_may_be_let_off() -> None:
    def ended(student: str, stage: StudentStage = StudentStage.ROLLED_BACK, by: str = "canary/host/1", reason: str = "") -> Record:
        return 0, StudentState(student=student, stage=stage, decided_by=by, reason=reason)

    records = [
        ended("below", reason="success_worse_than_teacher"),
        ended("late", reason="max_age"),
        ended("regressed", reason="success_worse_than_champion"),
        ended("malformed", reason="format_errors_in_a_row"),
        ended("by-hand", by="cli/ann", reason="it is success_worse_than_teacher"),
        ended("revoked", StudentStage.REVOKED, reason="max_age"),
        ended("twice", reason="max_age"),
        ended("twice", StudentStage.REVOKED, by="cli/ann", reason="poisoned"),
    ]
    everyone = {state.student for _, state in records}
    assert barred(records) == everyone
    assert barred(records, below_teacher=True) == everyone - {"below", "late"}
