"""Anytime-valid comparison of two arms over epochs: sums, boundary, bounds. Pure arithmetic.

Scores are kept in millionths as whole numbers, so sums do not depend on the order in which units came, and a unit that changes can be
taken out again exactly.
"""

from collections.abc import Iterable
from math import fsum, log, sqrt

import msgspec

from stillhouse.schemas.errors import UsageError

MICRO = 1_000_000


class Moments(msgspec.Struct, frozen=True):
    """n, Σy and Σy² of scores y ∈ [0, 1] of units, higher is better.

    Args:
        n: units.
        total: Σy in millionths.
        squares: Σy² in millionths of millionths.
    """

    n: int = 0
    total: int = 0
    squares: int = 0

    @classmethod
    def of(cls, *scores: float) -> "Moments":
        """The sums of these scores, each rounded to a millionth.

        Raises:
            UsageError: a score is outside [0, 1].
        """
        for score in scores:
            if not 0 <= score <= 1:  # also NaN
                raise UsageError(f"a score is between 0 and 1, not {score}", fix="Cap the metric and divide it by its cap.")
        micros = [round(score * MICRO) for score in scores]
        return cls(len(micros), sum(micros), sum(micro * micro for micro in micros))

    def __add__(self, other: "Moments") -> "Moments":
        """Both together."""
        return Moments(self.n + other.n, self.total + other.total, self.squares + other.squares)

    def __sub__(self, other: "Moments") -> "Moments":
        """This one without a part of it."""
        return Moments(self.n - other.n, self.total - other.total, self.squares - other.squares)

    @property
    def mean(self) -> float:
        """The unsmoothed mean.

        Raises:
            ZeroDivisionError: there are no units.
        """
        return self.total / self.n / MICRO

    @property
    def variance(self) -> float:
        """The variance with half a unit added at 0 and half at 1: never zero, ¼ without units."""
        mean = (self.total / MICRO + 0.5) / (self.n + 1)
        return (self.squares / MICRO**2 + 0.5) / (self.n + 1) - mean * mean


class Contrast(msgspec.Struct, frozen=True, kw_only=True):
    """Treated minus control, summed over epochs: S = Σw(ȳ₁-ȳ₀), W = Σw, V = Σw²(s₁²/n₁+s₀²/n₀), w = n₁n₀/(n₁+n₀).

    The counts are of the epochs that count: those with units in both arms.
    """

    difference: float = 0.0
    weight: float = 0.0
    variance: float = 0.0
    treated: int = 0
    control: int = 0
    epochs: int = 0


def contrast(epochs: Iterable[tuple[Moments, Moments]]) -> Contrast:
    """Compare (treated, control) epoch by epoch, so that a trend over time or a changing share is no difference between the arms.

    An epoch without units in both arms says nothing and adds nothing.
    """
    used = [(treated, control) for treated, control in epochs if treated.n and control.n]
    weights = [treated.n * control.n / (treated.n + control.n) for treated, control in used]
    terms = list(zip(weights, used, strict=True))
    return Contrast(
        difference=fsum(w * (treated.mean - control.mean) for w, (treated, control) in terms),
        weight=fsum(weights),
        variance=fsum(w * w * (treated.variance / treated.n + control.variance / control.n) for w, (treated, control) in terms),
        treated=sum(treated.n for treated, _ in used),
        control=sum(control.n for _, control in used),
        epochs=len(used),
    )


class Bounds(msgspec.Struct, frozen=True):
    """An estimate with its lower and upper one-sided bounds, each valid at all looks at once."""

    estimate: float
    lower: float
    upper: float


def boundary(variance: float, rho: float, alpha: float) -> float:
    """How far a sum with this variance strays at any look, with a probability of alpha on each side.

    √((V+rho)·ln((V+rho)/(rho(2alpha)²)))

    Robbins' normal mixture, one-sided by taking the two-sided one at 2alpha (Robbins 1970; Howard et al. 2021). With estimated variances
    it is asymptotic (Waudby-Smith et al. 2024).

    Raises:
        UsageError: alpha is not in (0, ½), or rho not positive.
    """
    if not (0 < alpha < 0.5 and rho > 0):
        raise UsageError(f"the boundary needs 0 < alpha < 1/2 and rho > 0, not {alpha} and {rho}")
    total = variance + rho
    return sqrt(total * log(total / (rho * (2 * alpha) ** 2)))


def tuned_rho(variance: float, alpha: float) -> float:
    """The rho whose boundary is narrowest about where V has reached `variance`. Fixed before the first look.

    Raises:
        UsageError: alpha is not in (0, ½), or the variance not positive.
    """
    if not (0 < alpha < 0.5 and variance > 0):
        raise UsageError(f"rho needs 0 < alpha < 1/2 and a positive variance, not {alpha} and {variance}")
    spent = -2 * log(2 * alpha)
    return variance / (spent + log(1 + spent))


def bounds(epochs: Iterable[tuple[Moments, Moments]], rho: float, alpha: float) -> Bounds | None:
    """The difference of means, treated minus control, with a bound of error alpha on each side; None where there is nothing to compare.

    Args:
        epochs: (treated, control) of each epoch.
        rho: `tuned_rho`, frozen before the first look.
        alpha: of each side alone, below ½.

    Raises:
        UsageError: as `boundary`.
    """
    return bounds_of(contrast(epochs), rho, alpha)


def bounds_of(sums: Contrast, rho: float, alpha: float) -> Bounds | None:
    """As `bounds`, from sums that are there already."""
    half = boundary(sums.variance, rho, alpha)
    if sums.weight == 0:
        return None
    estimate = sums.difference / sums.weight
    return Bounds(estimate, estimate - half / sums.weight, estimate + half / sums.weight)
