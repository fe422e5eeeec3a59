"""Many simulated canaries at once: the rules of `stillhouse.serving.canary` in numpy, a column a canary, a look after every unit.

A test compares it with the product's own `decide` on the same units (tests/serving/canary/test_simulation.py).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stillhouse.schemas.assign import Arm
from stillhouse.serving.canary.experiment import Experiment
from stillhouse.serving.canary.units import Metric

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

ARMS = (Arm.CANARY, Arm.CHAMPION, Arm.TEACHER)
CANARY = 0
RUNNING, PROMOTED, ROLLED_BACK = 0, 1, 2


@dataclass(frozen=True)
class World:
    """What is true of the traffic: scores are 0 or 1.

    Args:
        rates: of a score of 1, by metric and arm (canary, champion, teacher).
        trend: success rises by this much over the first `trend_units` units, the same in all arms.
        delay: units that arrive before the outcome of one is known.
        missing: outcomes that never come, 0…1, the same in all arms.
    """

    rates: dict[Metric, tuple[float, float, float]]
    trend: float = 0.0
    trend_units: int = 2700
    delay: int = 20
    missing: float = 0.0

    def table(self, metrics: list[Metric], unit: int) -> Floats:
        """Rates (metric, arm) for the unit that arrived as number `unit`."""
        drift = self.trend * (min(unit / self.trend_units, 1.0) - 0.5)
        rows = [[rate + (drift if metric is Metric.SUCCESS else 0.0) for rate in self.rates[metric]] for metric in metrics]
        return np.asarray(np.clip(np.array(rows), 0.0, 1.0))


def mixture(variance: Floats, rho: Floats, alpha: float) -> Floats:
    """The product's boundary."""
    total = variance + rho
    return np.asarray(np.sqrt(total * np.log(total / (rho * (2 * alpha) ** 2))))


@dataclass(frozen=True)
class Rules:
    """Where a simulated controller differs from the product: another boundary, epochs ignored, verdicts left out, one stage only."""

    half: Callable[[Floats, Floats, float], Floats] = mixture
    pooled: bool = False
    crown: bool = True
    rollback: bool = True
    stage: int | None = None


PRODUCT = Rules()


@dataclass(frozen=True)
class Outcome:
    """What became of each canary: verdict, matured canary units and units of all arms at the verdict."""

    verdict: Ints
    canary: Ints
    units: Ints

    def share(self, verdict: int) -> float:
        """How many ended so, 0…1."""
        return float(np.mean(self.verdict == verdict))


class Tests:
    """The comparisons of an experiment as arrays (test, run): closed epochs as S, W, V, n₁, n₀; the open one as n₁, Σ₁, n₀, Σ₀.

    Comparisons of metrics that the world knows nothing of are left out. Σy² = Σy, because scores are 0 or 1.
    """

    def __init__(self, experiment: Experiment, world: World, runs: int, half: Callable[[Floats, Floats, float], Floats]) -> None:
        used = [test for test in experiment.tests if test.metric in world.rates]
        self.metrics = list(dict.fromkeys(test.metric for test in used))
        self.rows = [self.metrics.index(test.metric) for test in used]
        self.success = np.array([[test.metric is Metric.SUCCESS] for test in used])
        self.reference = np.array([[ARMS.index(test.against)] for test in used])
        self.margin = np.array([[test.margin] for test in used])
        self.below = np.array([[-np.inf if test.rollback_below is None else test.rollback_below] for test in used])
        self.crown_rho, self.rollback_rho = (np.array([[getattr(test, name)] for test in used]) for name in ("crown_rho", "rollback_rho"))
        self.experiment, self.half = experiment, half
        self.closed, self.open = np.zeros((5, len(used), runs)), np.zeros((4, len(used), runs))

    def add(self, arm: Ints, known: Bools, scores: Floats) -> None:
        """One matured unit in each run; scores are (metric, run)."""
        present, y = known | ~self.success, scores[self.rows]
        treated, control = (arm == CANARY) & present, (arm == self.reference) & present
        for row, part in enumerate((treated, treated * y, control, control * y)):
            self.open[row] += part

    def close(self, where: Bools) -> None:
        """A new epoch begins in these runs."""
        if where.any():
            self.closed[:, :, where] += self._terms()[:, :, where]
            self.open[:, :, where] = 0.0

    def _terms(self) -> Floats:
        """What the open epoch adds; nothing while an arm is empty."""
        n1, y1, n0, y0 = self.open
        d1, d0 = np.maximum(n1, 1), np.maximum(n0, 1)
        w = n1 * n0 / np.maximum(n1 + n0, 1)
        m1, m0 = (y1 + 0.5) / (n1 + 1), (y0 + 0.5) / (n0 + 1)
        terms = (w * (y1 / d1 - y0 / d0), w, w * w * (m1 * (1 - m1) / d1 + m0 * (1 - m0) / d0), n1, n0)
        return np.where(w > 0, np.stack(terms), 0.0)

    def look(self) -> tuple[Bools, Bools, Bools]:
        """By run: all comparisons crown; one rolls back at a loss beyond the margin; one at a loss inside it."""
        settings = self.experiment.settings
        s, w, v, treated, control = self.closed + self._terms()
        weight = np.maximum(w, 1e-12)
        enough = np.minimum(treated, control) >= settings.min_units
        crowns = enough & ((s - self.half(v, self.crown_rho, self.experiment.crown_alpha)) / weight > -self.margin)
        ripe = (treated >= settings.rollback_canary_units) & (control >= settings.rollback_control_units)
        back = ripe & ((s + self.half(v, self.rollback_rho, self.experiment.rollback_alpha)) / weight < self.below)
        mild = self.below > -self.margin
        return crowns.all(axis=0), (back & ~mild).any(axis=0), (back & mild).any(axis=0)


class Canaries:
    """The state of all runs; one `step` is one unit that arrives and one that matures."""

    def __init__(self, experiment: Experiment, world: World, runs: int, units: int, seed: int, rules: Rules) -> None:
        self.experiment, self.world, self.rules, self.units = experiment, world, rules, units
        self.rng = np.random.default_rng(seed)
        self.last = len(experiment.stages) - 1
        self.cuts = np.cumsum([[experiment.shares(stage).of(arm) for arm in ARMS] for stage in range(self.last + 1)], axis=1)[:, :2]
        self.tests = Tests(experiment, world, runs, rules.half)
        self.arms, self.stages = np.zeros((units, runs), np.int8), np.zeros((units, runs), np.int8)
        self.stage = np.full(runs, rules.stage or 0)
        self.epoch = self.stage.copy()
        self.verdict, self.ended, self.canary, self.in_stage = (np.zeros(runs, np.int64) for _ in range(4))

    def step(self, unit: int) -> None:
        """Unit number `unit` arrives, the one `delay` before it matures and is looked at."""
        runs = len(self.stage)
        if unit < self.units:
            self.arms[unit] = (self.rng.random(runs)[:, None] >= self.cuts[self.stage]).sum(axis=1)
            self.stages[unit] = self.stage
        ripe = unit - self.world.delay
        if ripe < 0:
            return
        arm, fresh = self.arms[ripe].astype(np.int64), self.stages[ripe] != self.epoch
        self.epoch = self.stages[ripe].astype(np.int64)
        known = self.rng.random(runs) >= self.world.missing
        rates = self.world.table(self.tests.metrics, ripe)
        if not self.rules.pooled:
            self.tests.close(fresh)
        self.tests.add(arm, known, (self.rng.random((len(rates), runs)) < rates[:, arm]).astype(np.float64))
        self.canary += (self.verdict == RUNNING) & (arm == CANARY)
        self.in_stage = np.where(fresh, 0, self.in_stage) + ((arm == CANARY) & known & (self.epoch == self.stage))
        self._decide(ripe + 1)

    def _decide(self, looked_at: int) -> None:
        crowned, severe, mild = self.tests.look()
        running, settled = self.verdict == RUNNING, self.in_stage >= self.experiment.settings.min_units
        crowned &= (self.stage == self.last) & settled & self.rules.crown
        back = (severe | (mild & ~crowned)) & self.rules.rollback
        new = np.where(back, ROLLED_BACK, np.where(crowned, PROMOTED, RUNNING))
        self.ended = np.where(running & (new != RUNNING), looked_at, self.ended)
        self.verdict = np.where(running, new, self.verdict)
        up = (self.verdict == RUNNING) & settled & (self.stage < self.last) & (self.rules.stage is None)
        self.stage = self.stage + up
        self.in_stage = np.where(up, 0, self.in_stage)


def simulate(experiment: Experiment, world: World, *, runs: int, units: int, seed: int, rules: Rules = PRODUCT) -> Outcome:
    """Run canaries until their verdicts or so many units of all arms. Ages are not simulated: stages go by matured units."""
    canaries = Canaries(experiment, world, runs, units, seed, rules)
    for unit in range(units + world.delay):
        canaries.step(unit)
        if not (canaries.verdict == RUNNING).any():
            break
    return Outcome(canaries.verdict, canaries.canary, canaries.ended)
