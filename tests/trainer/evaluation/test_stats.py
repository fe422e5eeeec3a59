"""Statistics against published values, against scipy where it has them, and against what must always hold."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats  # type: ignore[import-untyped]

from stillhouse.schemas.errors import UsageError
from stillhouse.trainer.evaluation.stats import Interval, holm, paired_difference, pass_hat_k, rate, sign_test, wilson


def table(both: int, first: int, second: int, neither: int) -> list[tuple[float, float]]:
    return [(1.0, 1.0)] * both + [(1.0, 0.0)] * first + [(0.0, 1.0)] * second + [(0.0, 0.0)] * neither


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],  # Newcombe 1998, table I
)
def test_wilson_published(k: int, n: int, low: float, high: float) -> None:
    got = wilson(k, n)
    assert (got.low, got.high) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_wilson_equals_scipy(kn: tuple[int, int], confidence: float) -> None:
    k, n = kn
    theirs = scipy_stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    ours = wilson(k, n, confidence)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert 0 <= ours.low <= k / n <= ours.high <= 1


def test_no_tasks_say_nothing() -> None:
    assert rate([]).value is None
    assert rate([]).interval == Interval(0.0, 1.0)
    with pytest.raises(UsageError):
        paired_difference([])
    with pytest.raises(UsageError):
        wilson(3, 2)


def test_runs_of_one_task_count_as_one_task() -> None:
    assert rate([0.5, 1.0]).n == 2
    assert rate([0.5, 1.0]).value == 0.75


@pytest.mark.parametrize(
    ("cells", "low", "high"),
    [((36, 12, 2, 0), 0.0569, 0.3404), ((14, 5, 0, 22), 0.011, 0.226)],  # Newcombe 1998, method 10; Altman et al. 2000, chapter 6
)
def test_newcombe_paired_published(cells: tuple[int, int, int, int], low: float, high: float) -> None:
    got = paired_difference(table(*cells)).interval
    assert (got.low, got.high) == pytest.approx((low, high), abs=5e-4)


@pytest.mark.parametrize("n", [1, 7, 30])
def test_without_variance_the_wilson_halves_add_up_in_square(n: int) -> None:
    got, one = paired_difference(table(0, n, 0, 0)), wilson(n, n)
    assert (got.interval.low, got.interval.high) == pytest.approx((1 - 2**0.5 * (1 - one.low), 1.0))


cells = st.tuples(*[st.integers(0, 25)] * 4).filter(lambda c: sum(c) > 0)


@given(cells)
def test_a_difference_lies_in_its_interval_and_turns_round(c: tuple[int, int, int, int]) -> None:
    both, first, second, neither = c
    got, turned = paired_difference(table(*c)), paired_difference(table(both, second, first, neither))
    assert -1 <= got.interval.low <= got.value + 1e-12
    assert got.value - 1e-12 <= got.interval.high <= 1
    assert (turned.interval.low, turned.interval.high) == pytest.approx((-got.interval.high, -got.interval.low), abs=1e-9)


@given(st.integers(0, 40), st.integers(0, 40))
def test_sign_test_equals_the_binomial_tail(worse: int, better: int) -> None:
    n = worse + better
    expected = scipy_stats.binomtest(worse, n, 0.5, alternative="greater").pvalue if n else 1.0
    assert sign_test(worse, better) == pytest.approx(expected, rel=1e-9)


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({}) == {}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_monotone_and_between_raw_and_bonferroni(p: list[float]) -> None:
    raw = {str(i): x for i, x in enumerate(p)}
    adjusted = holm(raw)
    assert all(raw[k] <= adjusted[k] <= min(1.0, len(p) * max(raw[k], 0) + 1.0) for k in raw)
    order = sorted(raw, key=lambda k: raw[k])
    assert all(adjusted[a] <= adjusted[b] for a, b in pairwise(order))
    assert adjusted[order[0]] == min(1.0, len(p) * raw[order[0]])


@given(st.lists(st.integers(1, 6).flatmap(lambda n: st.lists(st.booleans(), min_size=n, max_size=n)), min_size=1, max_size=6))
def test_pass_hat_k_is_the_share_of_choices_that_all_succeed(runs: list[list[bool]]) -> None:
    k = min(len(r) for r in runs)
    shares = [sum(map(all, combinations(r, k))) / sum(1 for _ in combinations(r, k)) for r in runs]
    assert pass_hat_k([(sum(r), len(r)) for r in runs], k) == pytest.approx(sum(shares) / len(shares))


def test_pass_hat_k_needs_enough_runs() -> None:
    with pytest.raises(UsageError):
        pass_hat_k([(1, 2), (2, 2)], 3)
