"""Gates say no with a reason, and a parent is the best that passed them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.trainer.gates import Candidate, Rejection, choose_parent, data_gate, format_gate, loss_gate
from tests.trainer.training_factory import examples, held


def test_an_erased_row_on_either_side_is_refused() -> None:
    assert data_gate(examples(3), held()).passed
    for key in ("t/1", "t/501"):
        verdict = data_gate(examples(3), held(), erased={key})
        assert not verdict.passed
        assert key in verdict.reason


@pytest.mark.parametrize(("rate", "parent", "passed"), [(0.0, None, True), (0.9, None, True), (0.03, 0.02, True), (0.031, 0.02, False)])
def test_format_errors_may_be_one_point_above_the_parents(rate: float, parent: float | None, passed: bool) -> None:
    assert format_gate(rate, parent).passed is passed


@pytest.mark.parametrize(
    ("best", "parent", "train", "success", "parent_success", "passed"),
    [
        (None, None, 0.1, None, None, True),
        (0.30, 0.29, 0.1, None, None, True),
        (0.32, 0.29, 0.1, None, None, False),
        (0.32, 0.29, 0.1, 0.9, 0.1, False),
        (0.70, 0.80, 0.1, None, None, False),
        (0.70, 0.80, 0.1, 0.5, 0.5, False),
        (0.70, 0.80, 0.1, 0.6, 0.5, True),
        (0.70, None, 0.1, 0.6, None, True),
        (0.70, None, 0.1, 0.0, None, False),
    ],
)
def test_the_loss_gate(
    best: float | None, parent: float | None, train: float, success: float | None, parent_success: float | None, passed: bool
) -> None:
    verdict = loss_gate(best, parent, train, success=success, parent_success=parent_success)
    assert verdict.passed is passed
    assert bool(verdict.reason) is not passed


def candidate(name: str, success: float | None = 0.5, loss: float | None = 0.1, **changes: object) -> Candidate:
    return Candidate(name, success, loss, **({"format_passed": True, "data_passed": True} | changes))  # type: ignore[arg-type]


def test_the_parent_has_the_highest_success_then_the_lowest_loss_then_is_the_latest() -> None:
    assert choose_parent([]) is None
    assert choose_parent([candidate("a", 0.6), candidate("b", 0.5, 0.01)]) == candidate("a", 0.6)
    assert choose_parent([candidate("a", 0.6, 0.2), candidate("b", 0.6, 0.1)]) == candidate("b", 0.6, 0.1)
    assert choose_parent([candidate("a"), candidate("b")]) == candidate("b")
    assert choose_parent([candidate("a", 0.6, None), candidate("b", 0.6, 3.0)]) == candidate("b", 0.6, 3.0)


def test_where_success_was_not_measured_everywhere_the_latest_goes_on_whatever_the_losses_of_other_rows() -> None:
    assert choose_parent([candidate("a", None, 0.1), candidate("b", None, 0.4)]) == candidate("b", None, 0.4)
    assert choose_parent([candidate("a", 0.9, 0.1), candidate("b", None, 0.4)]) == candidate("b", None, 0.4)
    assert choose_parent([candidate("a", None, 0.1), candidate("b", 0.0, None)]) == candidate("b", 0.0, None)


_candidates = st.lists(
    st.builds(
        Candidate,
        name=st.text(max_size=3),
        success=st.none() | st.floats(0, 1),
        loss=st.none() | st.floats(0, 5),
        format_passed=st.booleans(),
        data_passed=st.booleans(),
        rejected=st.none() | st.sampled_from(Rejection),
    ),
    max_size=8,
)


@given(_candidates)
def test_a_rejected_or_ungated_student_is_never_a_parent(lineage: list[Candidate]) -> None:
    fit = [c for c in lineage if c.format_passed and c.data_passed and c.rejected is None]
    chosen = choose_parent(lineage)
    assert (chosen in fit) if fit else (chosen is None)
    if all(c.success is not None for c in fit):
        assert all((c.success or 0.0) <= (chosen.success or 0.0) for c in fit if chosen)
    else:
        assert chosen is fit[-1]
