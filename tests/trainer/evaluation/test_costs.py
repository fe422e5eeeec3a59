"""From which volume on a distillation has paid."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.schemas.errors import UsageError
from stillhouse.trainer.evaluation.costs import break_even

USD = st.floats(1e-6, 1e3)


def test_spend_is_paid_by_what_each_success_saves() -> None:
    found = break_even(12.0, teacher_usd=0.05, student_usd=0.002)
    assert found.successes == 250
    assert found.why == "$12.00 spent, $0.048 saved at each success (loaded): paid after 250."
    assert break_even(12.01, teacher_usd=0.05, student_usd=0.002).successes == 251  # a part of a success pays nothing
    assert break_even(0.0, teacher_usd=0.05, student_usd=0.002).successes == 0


@pytest.mark.parametrize(
    ("teacher", "student", "why"),
    [
        (0.05, 0.05, "never: a success of the student costs $0.05 (loaded), the teacher's $0.05."),
        (0.05, 0.2, "never: a success of the student costs $0.2 (loaded), the teacher's $0.05."),
        (None, 0.2, "the teacher has no cost per success"),
        (0.05, None, "the student has no cost per success"),
        (5e-324, 0.0, "never: what a success saves is too little"),
    ],
)
def test_a_student_that_saves_nothing_never_pays_and_the_reason_is_said(teacher: float | None, student: float | None, why: str) -> None:
    found = break_even(12.0, teacher_usd=teacher, student_usd=student)
    assert found.successes is None and found.why.startswith(why)


@pytest.mark.parametrize("spend", [-0.01, math.nan, math.inf])
def test_a_spend_that_is_none_is_refused(spend: float) -> None:
    with pytest.raises(UsageError, match="cannot have cost"):
        break_even(spend, teacher_usd=1.0, student_usd=0.1)


@given(st.floats(0, 1e6), USD, USD)
def test_at_the_volume_it_is_paid_and_one_success_before_it_is_not(spend: float, teacher: float, student: float) -> None:
    found = break_even(spend, teacher_usd=teacher, student_usd=student)
    if found.successes is None:
        assert student >= teacher
    else:
        saved = teacher - student
        assert found.successes * saved >= spend * (1 - 1e-9)
        assert found.successes == 0 or (found.successes - 1) * saved < spend * (1 + 1e-9)
