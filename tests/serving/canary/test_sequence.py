"""The comparison over epochs: formulas by hand, order, epochs that say nothing, Simpson's paradox, and another library's boundary."""

from math import log, sqrt
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.schemas.errors import UsageError
from stillhouse.serving.canary.sequence import Bounds, Moments, boundary, bounds, contrast, tuned_rho

score = st.integers(0, 1000).map(lambda number: number / 1000)
moments = st.lists(score, max_size=30).map(lambda scores: Moments.of(*scores))
epochs = st.lists(st.tuples(moments, moments), max_size=6)
level = st.floats(0.001, 0.4)
positive = st.floats(1e-3, 1e4)


def of(good: int, units: int) -> Moments:
    return Moments.of(*[1.0] * good, *[0.0] * (units - good))


@settings(deadline=None)
@given(st.lists(score, max_size=40), st.randoms(use_true_random=False))
def test_sums_do_not_depend_on_the_order_and_can_be_undone(scores: list[float], random: Random) -> None:
    shuffled = list(scores)
    random.shuffle(shuffled)
    whole, middle = Moments.of(*scores), len(scores) // 2
    assert Moments.of(*shuffled) == whole == Moments.of(*scores[:middle]) + Moments.of(*scores[middle:])
    assert whole - Moments.of(*scores[middle:]) == Moments.of(*scores[:middle])
    assert msgspec.json.decode(msgspec.json.encode(whole), type=Moments) == whole


@settings(deadline=None)
@given(moments)
def test_the_smoothed_variance_is_never_zero(known: Moments) -> None:
    assert 0 < known.variance <= 0.25 + 1e-12


@pytest.mark.parametrize("bad", [-0.01, 1.01, float("nan"), float("inf")])
def test_scores_are_between_0_and_1(bad: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        Moments.of(bad)


def test_the_formulas_by_hand() -> None:
    found = bounds([(of(6, 10), of(15, 20)), (of(4, 5), of(5, 5))], rho=2.0, alpha=0.05)
    w1, w2 = 200 / 30, 25 / 10
    s = w1 * (0.6 - 0.75) + w2 * (0.8 - 1.0)

    def smoothed(good: float, n: int) -> float:
        return (good + 0.5) / (n + 1) - ((good + 0.5) / (n + 1)) ** 2

    v = w1**2 * (smoothed(6, 10) / 10 + smoothed(15, 20) / 20) + w2**2 * (smoothed(4, 5) / 5 + smoothed(5, 5) / 5)
    half = sqrt((v + 2) * log((v + 2) / (2 * 0.1**2))) / (w1 + w2)
    assert found is not None
    estimate = s / (w1 + w2)
    assert [found.estimate, found.lower, found.upper] == pytest.approx([estimate, estimate - half, estimate + half])


@settings(deadline=None)
@given(epochs, positive, level, st.randoms(use_true_random=False))
def test_bounds_do_not_depend_on_the_order_of_epochs(
    known: list[tuple[Moments, Moments]], rho: float, alpha: float, random: Random
) -> None:
    shuffled = list(known)
    random.shuffle(shuffled)
    assert bounds(shuffled, rho, alpha) == bounds(known, rho, alpha)


@settings(deadline=None)
@given(epochs, moments, st.booleans(), positive, level)
def test_an_epoch_without_both_arms_adds_nothing(
    known: list[tuple[Moments, Moments]], lonely: Moments, treated: bool, rho: float, alpha: float
) -> None:
    silent = (lonely, Moments()) if treated else (Moments(), lonely)
    assert contrast([*known, silent]) == contrast(known)
    assert bounds([*known, silent], rho, alpha) == bounds(known, rho, alpha)


@settings(deadline=None)
@given(epochs, positive, level, level)
def test_a_smaller_alpha_never_narrows(known: list[tuple[Moments, Moments]], rho: float, one: float, other: float) -> None:
    strict, loose = bounds(known, rho, min(one, other)), bounds(known, rho, max(one, other))
    if strict is None or loose is None:
        assert strict is loose is None
        return
    assert strict.lower <= loose.lower <= loose.estimate <= loose.upper <= strict.upper


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.data())
def test_a_success_more_in_the_canary_raises_the_estimate(treated: int, control: int, data: st.DataObject) -> None:
    good, reference = data.draw(st.integers(0, treated - 1)), of(data.draw(st.integers(0, control)), control)
    less, more = (bounds([(of(n, treated), reference)], 5.0, 0.05) for n in (good, good + 1))
    assert less is not None and more is not None and less.estimate < more.estimate


@settings(deadline=None)
@given(st.integers(2, 60), st.integers(2, 60), st.data())
def test_swapping_the_arms_mirrors_the_bounds(treated: int, control: int, data: st.DataObject) -> None:
    one, other = of(data.draw(st.integers(0, treated)), treated), of(data.draw(st.integers(0, control)), control)
    there, back = bounds([(one, other)], 5.0, 0.05), bounds([(other, one)], 5.0, 0.05)
    assert there is not None and back is not None
    assert [there.estimate, there.lower, there.upper] == pytest.approx([-back.estimate, -back.upper, -back.lower])


def test_no_data_is_no_bounds() -> None:
    assert bounds([], 1.0, 0.05) is None
    assert bounds([(of(3, 3), Moments())], 1.0, 0.05) is None


@pytest.mark.parametrize(("rho", "alpha"), [(1.0, 0.5), (1.0, 0.0), (0.0, 0.05), (-1.0, 0.05)])
def test_a_boundary_needs_alpha_below_a_half_and_rho(rho: float, alpha: float) -> None:
    with pytest.raises(UsageError):
        boundary(1.0, rho, alpha)


def test_simpsons_paradox_is_none() -> None:
    """Equal arms; success falls from 90 to 50 % while the canary's share grows from 10 to 50 %. Pooled, the canary looks far worse."""
    ramp = [(of(180, 200), of(1620, 1800)), (of(500, 1000), of(500, 1000))]
    apart = bounds(ramp, 5.0, 0.05)
    pooled = bounds([(ramp[0][0] + ramp[1][0], ramp[0][1] + ramp[1][1])], 5.0, 0.05)
    assert apart is not None and pooled is not None
    assert apart.estimate == pytest.approx(0.0) and apart.lower < 0 < apart.upper
    assert pooled.upper < -0.05


@settings(deadline=None)
@given(st.floats(0.001, 0.15), st.floats(0.1, 1e5))
def test_rho_makes_the_boundary_narrowest_about_there(alpha: float, variance: float) -> None:
    rho = tuned_rho(variance, alpha)
    best = min(boundary(variance, rho * 2 ** (step / 10), alpha) for step in range(-40, 41))
    assert boundary(variance, rho, alpha) <= best * 1.01


def covers(random: Random, rate: float, looks: int, alpha: float) -> tuple[bool, bool]:
    """Whether the lower and the upper bound held at every look of one A/A run."""
    rho, arms = tuned_rho(looks * 0.25 * rate * (1 - rate), alpha), [Moments(), Moments()]
    low = high = True
    for look in range(looks):
        arm = random.getrandbits(1)
        arms[arm] += Moments.of(float(random.random() < rate))
        found = bounds([(arms[1], arms[0])], rho, alpha) if look >= 20 else None
        low, high = low and (found is None or found.lower <= 0), high and (found is None or found.upper >= 0)
    return low, high


def test_bounds_cover_at_all_looks_together() -> None:
    random, runs = Random(7), 250
    held = [covers(random, 0.8, 250, 0.05) for _ in range(runs)]
    for side in (0, 1):  # 5 % are allowed; 1 in 10,000 sets of 250 runs has more than 26 such
        assert sum(not run[side] for run in held) <= 26


def test_the_boundary_is_that_of_another_library() -> None:
    ville = pytest.importorskip("ville", reason="a check in development only: pip install ville")
    random = Random(3)
    stream = [random.gauss(0, 1) for _ in range(300)]
    for alpha in (0.01, 0.1, 0.5):  # theirs has two sides: half on each
        theirs = ville.GaussianMixtureCS(sigma=1.0, alpha=alpha, t_opt=200, intersect=False).fit(stream)
        for seen in (1, 50, 200, 300):
            half = boundary(float(seen), theirs.rho_, alpha / 2) / seen
            assert theirs.upper_[seen - 1] - theirs.estimate_[seen - 1] == pytest.approx(half)
        ours = boundary(200.0, tuned_rho(200.0, alpha / 2), alpha / 2)
        assert ours == pytest.approx(boundary(200.0, theirs.rho_, alpha / 2), rel=0.005)


def test_bounds_are_plain_values() -> None:
    assert msgspec.json.decode(msgspec.json.encode(Bounds(0.0, -1.0, 1.0)), type=Bounds) == Bounds(0.0, -1.0, 1.0)
