"""Cost of an arm: a bounded score for the test, and the cost per success with Fieller's interval for people."""

from math import sqrt

import msgspec

from stillhouse.schemas.errors import UsageError
from stillhouse.serving.canary.sequence import MICRO


def cost_score(cost: float, success: float, *, budget: float, price: float) -> float:
    """How well a trajectory was worth its money, in [0, 1]: 1 - y with y = ½ + (cost - κ·success) / (2·max(c, κ)).

    An arm whose mean score is above the control's pays less than κ for a success, whatever its success rate.

    Args:
        cost: of the trajectory in USD, the fallback's tokens included; counted up to the budget.
        success: 0…1.
        budget: c, the most that the route lets a trajectory cost.
        price: κ, the control's cost per success, frozen before the canary.

    Raises:
        UsageError: a budget that is not positive, or a negative cost or price.
    """
    if budget <= 0 or price < 0 or cost < 0:
        raise UsageError(f"a cost score needs a positive budget and no negative amounts: {cost=}, {budget=}, {price=}")
    return 0.5 - (min(cost, budget) - price * success) / (2 * max(budget, price))


class Money(msgspec.Struct, frozen=True):
    """Sums over units of (cost, success), exact whole numbers: cost in micro USD, success in millionths."""

    n: int = 0
    cost: int = 0
    success: int = 0
    cost_squares: int = 0
    success_squares: int = 0
    products: int = 0

    @classmethod
    def of(cls, cost: float, success: float) -> "Money":
        """One unit: what it cost in USD, and its success 0…1."""
        c, s = round(cost * MICRO), round(success * MICRO)
        return cls(1, c, s, c * c, s * s, c * s)

    def __add__(self, other: "Money") -> "Money":
        """Both together."""
        return Money(*(mine + theirs for mine, theirs in zip(msgspec.structs.astuple(self), msgspec.structs.astuple(other), strict=True)))

    def __sub__(self, other: "Money") -> "Money":
        """This one without a part of it."""
        return Money(*(mine - theirs for mine, theirs in zip(msgspec.structs.astuple(self), msgspec.structs.astuple(other), strict=True)))

    @property
    def per_success(self) -> float | None:
        """USD per success; None without a success."""
        return self.cost / self.success if self.success else None


class Ratio(msgspec.Struct, frozen=True):
    """A ratio of means with its interval; None where the denominator may be zero and the interval is not bounded."""

    value: float
    low: float | None
    high: float | None


def fieller(
    numerator: tuple[float, float], denominator: tuple[float, float], covariance: float = 0.0, *, z: float = 1.959964
) -> Ratio | None:
    """The ratio of two means with Fieller's interval (Fieller 1954).

    Args:
        numerator: mean and the variance of that mean.
        denominator: mean and the variance of that mean.
        covariance: of the two means; 0 for different units.
        z: the normal quantile of the two-sided interval, 95 % by default.

    Returns:
        None where the denominator's mean is zero.
    """
    (a, var_a), (b, var_b) = numerator, denominator
    if b == 0:
        return None
    leading = b * b - z * z * var_b  # of a quadratic in the ratio: positive where the denominator differs from zero
    if leading <= 0:
        return Ratio(a / b, None, None)
    middle = a * b - z * z * covariance
    root = sqrt(max(0.0, middle * middle - leading * (a * a - z * z * var_a)))
    return Ratio(a / b, (middle - root) / leading, (middle + root) / leading)


def _spread(n: int, squares: int, left: int, right: int) -> float:
    """The (co)variance of two means over the same units, from whole-number sums."""
    return (squares - left * right / n) / (n - 1) / n / MICRO**2


def cost_per_success(arm: Money) -> Ratio | None:
    """USD per success of one arm with its interval; None with fewer than two units or without a success. Displayed, never tested."""
    if arm.n < 2:
        return None
    cost, success = arm.cost / arm.n / MICRO, arm.success / arm.n / MICRO
    return fieller(
        (cost, _spread(arm.n, arm.cost_squares, arm.cost, arm.cost)),
        (success, _spread(arm.n, arm.success_squares, arm.success, arm.success)),
        _spread(arm.n, arm.products, arm.cost, arm.success),
    )


def cost_ratio(treated: Money, control: Money) -> Ratio | None:
    """Mean cost of a unit of one arm over that of another, with its interval; None with fewer than two units. Displayed, never tested."""
    if min(treated.n, control.n) < 2:
        return None
    return fieller(
        (treated.cost / treated.n / MICRO, _spread(treated.n, treated.cost_squares, treated.cost, treated.cost)),
        (control.cost / control.n / MICRO, _spread(control.n, control.cost_squares, control.cost, control.cost)),
    )
