"""Rates, differences and tests of evaluations. Pure and exact; a task is the unit, however often it ran.

Several runs of one task are not independent, so a task enters with its mean: the number of tasks is the sample size.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import comb, sqrt
from statistics import NormalDist, fmean

import msgspec

from stillhouse.schemas.errors import UsageError


class Interval(msgspec.Struct, frozen=True):
    """A two-sided confidence interval."""

    low: float
    high: float


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """`k` successes of `n` tasks with Wilson's interval. `k` is fractional only where tasks ran several times.

    Without tasks `value` is None and the interval is everything.
    """

    k: float
    n: int
    interval: Interval

    @property
    def value(self) -> float | None:
        """The rate itself."""
        return self.k / self.n if self.n else None


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """First rate minus second, on the same `n` tasks."""

    value: float
    n: int
    interval: Interval


def wilson(k: float, n: float, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of k successes in n (Wilson 1927).

    Raises:
        UsageError: not 0 ≤ k ≤ n.
    """
    if not 0 <= k <= n:
        raise UsageError(f"{k} successes of {n}")
    if n == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p, z2 = k / n, z * z
    middle, half = p + z2 / (2 * n), z * sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # At the ends the formula gives 0 and 1 up to rounding.
    low = 0.0 if k == 0 else (middle - half) / (1 + z2 / n)
    return Interval(low, 1.0 if k == n else (middle + half) / (1 + z2 / n))


def rate(tasks: Sequence[float], confidence: float = 0.95) -> Rate:
    """The success rate of tasks, each given by the mean (0…1) of its runs."""
    k = sum(tasks)
    return Rate(k=k, n=len(tasks), interval=wilson(min(k, len(tasks)), len(tasks), confidence))


def paired_difference(pairs: Sequence[tuple[float, float]], confidence: float = 0.95) -> Difference:
    """The difference of two rates on the same tasks: Newcombe's paired interval (1998, method 10).

    Args:
        pairs: for each task the mean success of the first and of the second.
        confidence: of the two-sided interval.

    Raises:
        UsageError: there are no tasks.
    """
    if not pairs:
        raise UsageError("no task ran with both")
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    p1, p2, n = fmean(first), fmean(second), len(pairs)
    i1, i2 = (wilson(min(sum(x), n), n, confidence) for x in (first, second))
    phi = _correlation(first, second)
    low = _hypotenuse(p1 - i1.low, i2.high - p2, phi)
    high = _hypotenuse(i1.high - p1, p2 - i2.low, phi)
    return Difference(value=p1 - p2, n=n, interval=Interval(max(-1.0, p1 - p2 - low), min(1.0, p1 - p2 + high)))


def _hypotenuse(a: float, b: float, phi: float) -> float:
    return sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))


def _correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Newcombe's φ: a positive one is taken smaller, by half a task's worth, because it narrows the interval."""
    n, s1, s2 = len(first), sum(first), sum(second)
    # For values 0 and 1 this is the determinant of the table of both outcomes.
    determinant = n * sum(a * b for a, b in zip(first, second, strict=True)) - s1 * s2
    q1, q2 = n * sum(a * a for a in first) - s1 * s1, n * sum(b * b for b in second) - s2 * s2
    if q1 <= 0 or q2 <= 0:
        return 0.0
    if determinant > 0:
        determinant = max(0.0, determinant - n / 2)
    return determinant / sqrt(q1 * q2)


def sign_test(worse: int, better: int) -> float:
    """One-sided exact sign test: the chance of at least `worse` of the discordant pairs, were both ways as likely."""
    n = worse + better
    return float(Fraction(sum(comb(n, i) for i in range(worse, n + 1)), 2**n))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values (1979): rejecting those at most alpha keeps the chance of any false rejection at most alpha."""
    adjusted: dict[str, float] = {}
    running = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        running = max(running, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = running
    return adjusted


def pass_hat_k(counts: Sequence[tuple[int, int]], k: int) -> float:
    """pass^k: the chance that k runs of a task all succeed, averaged over tasks (tau-bench's unbiased estimate).

    Args:
        counts: for each task (successes c, runs n).
        k: runs that must all succeed.

    Raises:
        UsageError: no tasks, or one that ran fewer than k times.
    """
    if not counts or any(n < k for _, n in counts) or k < 1:
        raise UsageError(f"pass^{k} needs tasks that ran at least {k} times each")
    return fmean(comb(c, k) / comb(n, k) for c, n in counts)
