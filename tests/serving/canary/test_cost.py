"""The cost score and the interval of a ratio."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.schemas.errors import UsageError
from stillhouse.serving.canary.cost import Money, cost_per_success, cost_ratio, cost_score, fieller

money = st.floats(0, 5)
share = st.floats(0, 1)


@settings(deadline=None)
@given(cost=money, success=share, budget=st.floats(0.01, 5), price=money)
def test_a_score_is_between_0_and_1_and_falls_with_cost(cost: float, success: float, budget: float, price: float) -> None:
    found = cost_score(cost, success, budget=budget, price=price)
    assert -1e-12 <= found <= 1 + 1e-12
    assert cost_score(cost + 0.1, success, budget=budget, price=price) <= found
    assert cost_score(cost, min(1.0, success + 0.1), budget=budget, price=price) >= found


def test_an_arm_at_the_controls_price_scores_one_half() -> None:
    """Half the success at half the cost is the same price of a success, and no better."""
    dear = [cost_score(0.4, s, budget=1.0, price=0.5) for s in (1, 1, 1, 1, 0)]
    cheap = [cost_score(0.2, s, budget=1.0, price=0.5) for s in (1, 1, 0, 0, 0)]
    assert sum(dear) / 5 == pytest.approx(0.5) == sum(cheap) / 5


def test_cost_is_counted_up_to_the_budget() -> None:
    assert cost_score(50.0, 0.0, budget=1.0, price=0.5) == cost_score(1.0, 0.0, budget=1.0, price=0.5) == 0.0


@pytest.mark.parametrize(("cost", "budget", "price"), [(0.1, 0.0, 0.1), (-0.1, 1.0, 0.1), (0.1, 1.0, -0.1)])
def test_no_negative_amounts(cost: float, budget: float, price: float) -> None:
    with pytest.raises(UsageError, match="positive budget"):
        cost_score(cost, 1.0, budget=budget, price=price)


@settings(deadline=None)
@given(st.lists(st.tuples(money, share), max_size=20), st.lists(st.tuples(money, share), max_size=20))
def test_money_adds_and_subtracts_exactly(one: list[tuple[float, float]], other: list[tuple[float, float]]) -> None:
    first, second = (sum((Money.of(*unit) for unit in units), Money()) for units in (one, other))
    assert first + second - second == first


def test_fieller_of_a_sure_denominator_is_the_plain_interval() -> None:
    found = fieller((2.0, 0.01), (4.0, 0.0), z=2.0)
    assert found is not None and (found.value, found.low, found.high) == pytest.approx((0.5, 0.45, 0.55))


def test_fieller_is_unbounded_where_the_denominator_may_be_zero() -> None:
    found = fieller((2.0, 0.01), (0.1, 0.01))
    assert found is not None and found.low is None and found.high is None
    assert fieller((2.0, 0.01), (0.0, 0.01)) is None


def arm(random: Random, units: int, mean: float, success: float) -> Money:
    spent = [(random.uniform(0.5, 1.5) * mean, float(random.random() < success)) for _ in range(units)]
    return sum((Money.of(*unit) for unit in spent), Money())


def test_intervals_cover_the_true_ratio() -> None:
    random, price, ratio = Random(5), 0, 0
    for _ in range(300):
        canary, teacher = arm(random, 80, 0.02, 0.8), arm(random, 60, 0.10, 0.9)
        shown, relative = cost_per_success(canary), cost_ratio(canary, teacher)
        assert shown is not None and relative is not None
        price += shown.low is not None and shown.high is not None and shown.low <= 0.02 / 0.8 <= shown.high
        ratio += relative.low is not None and relative.high is not None and relative.low <= 0.2 <= relative.high
    assert 270 <= price <= 299 and 270 <= ratio <= 299  # 285 are expected


def test_no_ratio_without_units_or_success() -> None:
    assert cost_per_success(Money.of(0.1, 1.0)) is None
    assert cost_per_success(Money.of(0.1, 0.0) + Money.of(0.2, 0.0)) is None
    assert cost_ratio(Money(), Money.of(0.1, 1.0)) is None
    assert Money().per_success is None and Money.of(0.25, 0.5).per_success == 0.5
