"""Error rates of the product's rules in a small simulation, and that the simulation has the product's rules."""

import msgspec
import numpy as np
import pytest

from bench.canary import experiment, single, world
from bench.canary_streams import ARMS, CANARY, PROMOTED, ROLLED_BACK, RUNNING, Bools, Canaries, Floats, Ints, Rules, World, simulate
from stillhouse.schemas.assign import Arm
from stillhouse.serving.canary.decide import Look, Verdict, decide
from stillhouse.serving.canary.experiment import CanarySettings, Experiment
from stillhouse.serving.canary.sequence import Moments
from stillhouse.serving.canary.tally import ArmTally, EpochTally
from stillhouse.serving.canary.units import Metric

ENDS = {Verdict.HOLD: RUNNING, Verdict.PROMOTE: PROMOTED, Verdict.ROLLBACK: ROLLED_BACK}
QUICK = CanarySettings(
    stages=(0.25, 0.50), min_age_s=0.0, max_age_s=1e9, margin=0.25,
    format_margin=0.2, steps_margin=0.2, latency_margin=0.2, fallback_margin=0.2,
)  # fmt: skip


class Recorded(Canaries):
    """A simulation that keeps what its units scored."""

    def __init__(self, planned: Experiment, traffic: World, runs: int, units: int, seed: int) -> None:
        super().__init__(planned, traffic, runs, units, seed, Rules())
        self.kept: list[tuple[Ints, Bools, Floats]] = []
        add = self.tests.add

        def record(arm: Ints, known: Bools, scores: Floats) -> None:
            self.kept.append((arm, known, scores))
            add(arm, known, scores)

        self.tests.add = record  # type: ignore[method-assign]


def replay(simulated: Recorded, planned: Experiment, run: int) -> tuple[int, int]:
    """The product's verdict over the same units of one run, and the number of units at it."""
    stage, delay = 0, simulated.world.delay
    # The simulation draws all units by the experiment: nobody is held back for ever.
    drawn = [msgspec.structs.replace(planned.shares(at), holdback=0.0) for at in range(len(planned.stages))]
    epochs = [EpochTally(epoch=at, stage=at, shares=shares) for at, shares in enumerate(drawn)]
    for step in range(simulated.units + delay):
        if step < simulated.units:
            assert simulated.stages[step, run] == stage
        ripe = step - delay
        if ripe < 0:
            continue
        arms, known, scores = (part[..., run] for part in simulated.kept[ripe])
        moments = {metric: Moments.of(float(score)) for metric, score in zip(simulated.tests.metrics, scores, strict=True)}
        if not known:
            del moments[Metric.SUCCESS]
        unit = ArmTally(assigned=1, matured=1, judged=int(known), moments=moments)
        at, arm = int(simulated.stages[ripe, run]), ARMS[int(arms)]
        old = epochs[at]
        epochs[at] = EpochTally(epoch=at, stage=at, shares=old.shares, arms={**old.arms, arm: old.of(arm) + unit})
        verdict = decide(planned, Look(stage=stage, epochs=tuple(epochs), now=0, started=0, stage_started=0)).verdict
        if verdict is Verdict.ADVANCE:
            stage += 1
        elif verdict is not Verdict.HOLD:
            return ENDS[verdict], ripe + 1
    return RUNNING, 0


@pytest.mark.parametrize(("loss", "champion"), [(0.0, True), (0.0, False), (0.35, True), (0.12, True)])
def test_the_simulation_decides_as_the_product_does(loss: float, champion: bool) -> None:
    """Every run ends with the same verdict at the same unit."""
    planned = experiment(0.8, champion=champion, settings=QUICK, units=600)
    tests = tuple(test for test in planned.tests if test.metric is not Metric.COST)
    planned = Experiment(**{name: getattr(planned, name) for name in planned.__struct_fields__} | {"tests": tests})
    simulated = Recorded(planned, world(0.8, loss, delay=10, guards=0.0), runs=3, units=450, seed=11)
    for step in range(simulated.units + simulated.world.delay):
        simulated.step(step)
    verdicts = [replay(simulated, planned, run) for run in range(3)]
    assert verdicts == list(zip(simulated.verdict.tolist(), simulated.ended.tolist(), strict=True))


def test_equal_students_are_seldom_rolled_back() -> None:
    """A/A over the whole ramp with a trend: 5 % are allowed. 1 in 10,000 sets of 300 runs has more than 30 such."""
    watch = Rules(crown=False)
    found = simulate(single(experiment(0.8, units=3000)), world(0.8, trend=-0.2), runs=300, units=3000, seed=2, rules=watch)
    assert found.share(ROLLED_BACK) <= 0.10
    everything = simulate(experiment(0.8, units=3000), world(0.8, trend=-0.2, guards=0.0), runs=300, units=3000, seed=3, rules=watch)
    assert everything.share(ROLLED_BACK) <= 0.10


def test_pooled_arms_would_roll_equal_students_back() -> None:
    pooled = Rules(crown=False, pooled=True)
    found = simulate(single(experiment(0.8, units=4000)), world(0.8, trend=-0.2), runs=100, units=4000, seed=2, rules=pooled)
    assert found.share(ROLLED_BACK) > 0.5


def test_a_student_at_minus_the_margin_is_seldom_crowned() -> None:
    planned = experiment(0.8, champion=False, units=3000)
    found = simulate(planned, world(0.8, planned.settings.margin), runs=300, units=3000, seed=4, rules=Rules(rollback=False, stage=4))
    assert found.share(PROMOTED) <= 0.08


def test_a_student_20_points_worse_goes_quickly() -> None:
    found = simulate(single(experiment(0.8)), world(0.8, 0.20), runs=200, units=4000, seed=5)
    assert found.share(ROLLED_BACK) >= 0.99
    assert np.median(found.canary) <= 60


def test_assigned_shares_are_those_of_the_stage() -> None:
    simulated = Canaries(experiment(0.8), World({Metric.SUCCESS: (0.8, 0.8, 0.8)}), 2000, 5, 6, Rules(stage=4))
    for step in range(5):
        simulated.step(step)
    assert np.mean(simulated.arms == CANARY) == pytest.approx(0.5, abs=0.03)
    assert np.mean(simulated.arms == ARMS.index(Arm.TEACHER)) == pytest.approx(0.25, abs=0.03)
