"""The family gate: catches a lost family, does not refuse a good student, says what it could not judge."""

import random
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.schemas.errors import GateError
from stillhouse.trainer import windows
from stillhouse.trainer.evaluation.benchmark import BenchTask, Episode
from stillhouse.trainer.evaluation.gate import family_gate
from stillhouse.trainer.students import verify
from stillhouse.trainer.windows_types import State
from tests.trainer.evaluation.fakes import episode
from tests.trainer.window_factory import SETTINGS, Desk, measured, put, trajectory


def episodes(outcomes: dict[str, list[bool]]) -> list[Episode]:
    return [
        episode(BenchTask(id=f"{family}-{i}", family=family, part="seen", payload=None), ok)
        for family, found in outcomes.items()
        for i, ok in enumerate(found)
    ]


def test_a_lost_family_is_refused_though_the_others_gained() -> None:
    parent = episodes({"refund": [True] * 12, "cancel": [False] * 12})
    student = episodes({"refund": [True] * 6 + [False] * 6, "cancel": [True] * 12})
    gate = family_gate(parent, student)
    verdicts = {t.family: t.verdict for t in gate.tests}
    assert verdicts == {"refund": "worse", "cancel": "not worse"}
    # 6 lost, none won: p = 1/64, twice that after Holm.
    assert {t.family: t.adjusted for t in gate.tests}["refund"] == pytest.approx(2 / 64)
    with pytest.raises(GateError, match="refund 12→6 of 12"):
        gate.require()


def test_a_few_lost_tasks_are_no_proof() -> None:
    gate = family_gate(episodes({"a": [True] * 12}), episodes({"a": [True] * 9 + [False] * 3}))
    assert gate.passed  # 1/8 > 0.10
    gate.require()


def test_small_families_are_judged_together() -> None:
    parent = episodes({f: [True] * 4 for f in "abc"})
    student = episodes({"a": [False] * 4, "b": [True] * 4, "c": [True] * 4})
    gate = family_gate(parent, student)
    (rest,) = gate.tests
    assert (rest.family, rest.members, rest.tasks, rest.worse) == ("rest", ("a", "b", "c"), 12, 4)
    assert not gate.passed
    assert gate.not_judged == ()


def test_it_says_what_it_could_not_judge() -> None:
    gate = family_gate(episodes({"a": [True] * 12, "b": [True] * 3}), episodes({"a": [True] * 12, "b": [False] * 3}))
    assert gate.passed
    assert gate.not_judged == ("b",)


def test_only_tasks_that_both_ran_count_and_runs_vote() -> None:
    parent = episodes({"a": [True] * 14})
    student = episodes({"a": [True] * 12}) + episodes({"a": [False] * 12}) + episodes({"a": [True] * 12})
    (test,) = family_gate(parent, student).tests
    assert (test.tasks, test.student, test.worse) == (12, 12, 0)


def test_an_equal_student_is_seldom_refused() -> None:
    r = random.Random(1)
    refused = 0
    for _ in range(200):
        one, two = ({f: [r.random() < 0.85 for _ in range(12)] for f in "abcd"} for _ in range(2))
        refused += not family_gate(episodes(one), episodes(two)).passed
    assert refused <= 20


def test_a_window_whose_student_lost_a_family_is_rejected(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    put(desk.store, [trajectory(i) for i in range(12)], 100)
    lost = msgspec.to_builtins(family_gate(episodes({"refund": [True] * 12}), episodes({"refund": [True] * 6 + [False] * 6})))
    result = desk.job(evaluate=measured(success=0.9, report={"family_gate": lost})).run(windows.plan(desk.store, SETTINGS))
    assert result.state is State.REJECTED and "worse than the parent on refund 12→6 of 12" in result.reason
    kept = msgspec.to_builtins(family_gate(episodes({"refund": [True] * 12}), episodes({"refund": [True] * 12})))
    result = desk.job(evaluate=measured(success=0.9, report={"family_gate": kept})).run(windows.plan(desk.store, SETTINGS))
    assert verify(desk.state / "students" / result.student).evaluation["report"]["family_gate"]["passed"] is True


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.tuples(st.booleans(), st.booleans()), max_size=16), max_size=6))
def test_every_task_is_in_one_test_and_a_better_student_passes(pairs: dict[str, list[tuple[bool, bool]]]) -> None:
    parent = episodes({f: [p for p, _ in found] for f, found in pairs.items()})
    student = episodes({f: [p or s for p, s in found] for f, found in pairs.items()})
    gate = family_gate(parent, student)
    assert sum(t.tasks for t in gate.tests) == sum(map(len, pairs.values()))
    assert gate.passed
