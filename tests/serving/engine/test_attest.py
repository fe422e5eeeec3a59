"""Whether what is served is the student: decided by distances, whatever the engine's rounding."""

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.schemas.student_folder import Probe
from stillhouse.serving.gateway.attest import judge, judge_greedy
from stillhouse.serving.gateway.attest_greedy import CERTAIN, LONGEST, actions
from stillhouse.serving.gateway.backend import Verdict

STUDENT = (-0.2, -0.4, -0.1, -0.3)


def probe(parent: float | None = 0.8, base: float = 2.0, ids: Sequence[int] = (1, 2, 3, 4, 5)) -> Probe:
    """`parent` and `base`: how far they are from the student, nats a token."""
    above = None if parent is None else moved(STUDENT, parent)
    return Probe(ids=tuple(ids), student=STUDENT, base=moved(STUDENT, base), parent=above)


def moved(scores: Sequence[float], by: float) -> tuple[float, ...]:
    return tuple(s - by for s in scores)


def verdict(served: Sequence[float], *probes: Probe) -> Verdict:
    return judge(probes, [served] * len(probes)).verdict


@given(noise=st.floats(0, 0.09), seed=st.integers(0, 99))
def test_rounding_is_no_reason_to_refuse(noise: float, seed: int) -> None:
    rng = random.Random(seed)
    served = tuple(s + rng.uniform(-noise, noise) for s in STUDENT)
    assert verdict(served, probe(), probe()) is Verdict.ACCEPTED


@given(parent=st.floats(0.051, 3), base=st.floats(0.051, 3))
def test_parent_and_base_are_never_taken_for_the_student(parent: float, base: float) -> None:
    one = probe(parent, base)
    assert one.parent is not None
    assert verdict(one.parent, one) is Verdict.REFUSED
    assert verdict(one.base, one) is Verdict.REFUSED


def test_a_third_of_the_way_to_the_parent_is_too_far() -> None:
    assert verdict(moved(STUDENT, 0.05), probe(parent=0.2)) is Verdict.REFUSED  # 0.05 from it and 0.15 from its parent
    assert verdict(moved(STUDENT, 0.02), probe(parent=0.2)) is Verdict.ACCEPTED


def test_a_tenth_of_a_nat_is_too_far_however_far_the_others_are() -> None:
    assert verdict(moved(STUDENT, 0.11), probe(parent=9.0, base=9.0)) is Verdict.REFUSED
    assert verdict(moved(STUDENT, 0.09), probe(parent=9.0, base=9.0)) is Verdict.ACCEPTED


@pytest.mark.parametrize(("parent", "base", "name"), [(0.04, 2.0, "parent"), (None, 0.04, "base"), (0.04, 0.04, "base and parent")])
def test_what_is_like_its_parent_is_accepted_by_name_and_said(parent: float | None, base: float, name: str) -> None:
    found = judge([probe(parent, base)], [STUDENT])
    assert found.verdict is Verdict.INDISTINGUISHABLE
    assert f"its {name} gives the same" in found.reason and "sha256" in found.reason


def test_a_student_like_its_parent_is_still_told_from_its_base() -> None:
    like = probe(parent=0.04, base=0.2)
    assert verdict(like.base, like) is Verdict.REFUSED
    assert verdict(moved(STUDENT, 0.06), like) is Verdict.REFUSED  # 0.06 from it, 0.14 from its base
    assert verdict(moved(STUDENT, 0.01), like) is Verdict.INDISTINGUISHABLE


def test_the_numbers_are_there() -> None:
    found = judge([probe()], [moved(STUDENT, 0.1 - 0.01)])
    assert found.numbers == pytest.approx(
        {"student": 0.09, "parent": 0.71, "base": 1.91, "student_to_parent": 0.8, "student_to_base": 2.0, "probes": 1.0}
    )


@pytest.mark.parametrize("served", [(), STUDENT[1:], (*STUDENT[1:], math.nan), (*STUDENT[1:], -math.inf)])
def test_what_are_no_log_probabilities_of_these_tokens_is_refused(served: Sequence[float]) -> None:
    assert verdict(served, probe()) is Verdict.REFUSED


def test_a_student_without_probes_is_refused() -> None:
    assert judge([], []).verdict is Verdict.REFUSED


@pytest.mark.parametrize(
    ("equal", "of", "verdict"),
    [
        (16, 16, "accepted"), (14, 16, "accepted"), (13, 16, "refused"),
        (8, 8, "accepted"), (7, 8, "accepted"), (6, 8, "refused"), (7, 7, "refused"),
    ],
)  # fmt: skip
def test_fourteen_of_sixteen_greedy_actions_are_enough(equal: int, of: int, verdict: str) -> None:
    assert judge_greedy([True] * equal + [False] * (of - equal)).verdict == verdict


def test_an_action_is_what_the_student_is_sure_of_and_another_is_not() -> None:
    sure, unsure = -0.1, -2.0
    one = Probe(ids=(9, 1, 2, 3, 4, 5), student=(unsure, sure, sure, unsure, sure), base=(sure, sure, unsure, unsure, sure))
    (found,) = actions([one], ())
    assert (found.prompt, found.written) == ((9, 1), (2, 3))
    like_parent = Probe(ids=one.ids, student=one.student, base=one.base, parent=one.student)
    assert actions([like_parent], ()) == ()  # its parent would write the same


@given(
    st.lists(st.tuples(st.integers(0, 9), st.floats(-4, 0), st.floats(-4, 0), st.floats(-4, 0)), min_size=1, max_size=60),
    st.sets(st.integers(0, 9), max_size=2),
)
def test_an_action_is_certain_short_and_holds_no_stop(rows: list[tuple[int, float, float, float]], stops: set[int]) -> None:
    ids, student, base, parent = (tuple(column) for column in zip(*rows, strict=True))
    one = Probe(ids=(0, *map(int, ids)), student=student, base=base, parent=parent)
    for found in actions([one], stops):
        begin, end = len(found.prompt), len(found.prompt) + len(found.written)
        assert one.ids[:end] == found.prompt + found.written
        assert 1 <= begin < end <= begin + LONGEST
        assert all(p > CERTAIN for p in student[begin - 1 : end - 1])
        assert min(base[begin - 1 : end - 1]) < CERTAIN and min(parent[begin - 1 : end - 1]) < CERTAIN
        assert not stops & set(found.written)
