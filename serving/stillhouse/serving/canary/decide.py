"""The decision at one look: hold, advance, promote, roll back, expire. A pure function of sums and times."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import msgspec

from stillhouse.schemas.assign import Arm
from stillhouse.serving.canary.checks import Coverage, SampleRatio, coverages, unit_ratio
from stillhouse.serving.canary.cost import Money, Ratio, cost_per_success, cost_ratio
from stillhouse.serving.canary.experiment import Experiment, Test, lifetime_alpha, spent_alpha
from stillhouse.serving.canary.sequence import bounds_of, contrast
from stillhouse.serving.canary.tally import EpochTally
from stillhouse.serving.canary.tripwires import Trip
from stillhouse.serving.canary.units import Metric


class Verdict(StrEnum):
    """What is to happen. `hold` is no record, only an answer."""

    HOLD = "hold"
    ADVANCE = "advance"
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    EXPIRE = "expire"


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What is known at one moment. Times are seconds on one clock, which the caller reads.

    Args:
        stage: the present one, 0 is the first.
        epochs: all epochs of the experiment, in any order; only matured units are compared.
        now: of this look.
        started: of the canary.
        stage_started: of the present stage.
        trip: a trip-wire, if one has tripped.
    """

    stage: int
    epochs: tuple[EpochTally, ...]
    now: float
    started: float
    stage_started: float
    trip: Trip | None = None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One comparison at one look. The crown's and the rollback's bounds differ in alpha and tuning; no bounds while there is no data.

    Args:
        canary: units of the canary in epochs that count.
        control: units of the reference in epochs that count.
        crowns: the lower bound is above minus the margin, with enough units.
        rolls_back: the upper bound is below where a rollback begins, with enough units.
    """

    metric: Metric
    against: Arm
    margin: float
    rollback_below: float | None
    canary: int
    control: int
    estimate: float | None
    lower: float | None
    upper: float | None
    rollback_upper: float | None
    crowns: bool
    rolls_back: bool

    @property
    def within_margin(self) -> bool:
        """Whether its rollback begins at a loss that a crown would accept."""
        return self.rollback_below is not None and self.rollback_below > -self.margin


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Every number that a verdict used, and the cost for people. Money and stage units are of the present stage."""

    stage: int
    share: float
    age_s: float
    stage_age_s: float
    canary_units: int
    stage_units: int
    tests: tuple[Result, ...]
    ratio_assigned: SampleRatio
    ratio_judged: SampleRatio
    coverage: tuple[Coverage, ...]
    cost_per_success: dict[Arm, Ratio | None]
    cost_ratio: Ratio | None
    crown_alpha: float
    rollback_alpha: float


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict with its reason (few distinct words, fit for a label) and its evidence."""

    verdict: Verdict
    reason: str
    evidence: Evidence
    alpha_before: float
    alpha_after: float

    @property
    def numbers(self) -> dict[str, Any]:
        """The evidence as plain values, for JSON."""
        return dict(msgspec.json.decode(msgspec.json.encode(self.evidence)))


def compare(experiment: Experiment, test: Test, epochs: Sequence[EpochTally]) -> Result:
    """One comparison at one look."""
    settings = experiment.settings
    sums = contrast((epoch.of(Arm.CANARY).of(test.metric), epoch.of(test.against).of(test.metric)) for epoch in epochs)
    crown = bounds_of(sums, test.crown_rho, experiment.crown_alpha)
    back = bounds_of(sums, test.rollback_rho, experiment.rollback_alpha) if test.rollback_below is not None else None
    ripe = sums.treated >= settings.rollback_canary_units and sums.control >= settings.rollback_control_units
    below = test.rollback_below
    return Result(
        metric=test.metric,
        against=test.against,
        margin=test.margin,
        rollback_below=below,
        canary=sums.treated,
        control=sums.control,
        estimate=crown.estimate if crown else None,
        lower=crown.lower if crown else None,
        upper=crown.upper if crown else None,
        rollback_upper=back.upper if back else None,
        crowns=crown is not None and min(sums.treated, sums.control) >= settings.min_units and crown.lower > -test.margin,
        rolls_back=back is not None and below is not None and ripe and back.upper < below,
    )


def _money(epochs: Sequence[EpochTally], arm: Arm) -> Money:
    return sum((epoch.of(arm).money for epoch in epochs), Money())


def weigh(experiment: Experiment, look: Look) -> Evidence:
    """All the numbers of one look."""
    stage = [epoch for epoch in look.epochs if epoch.stage == look.stage]
    money = {arm: _money(stage, arm) for arm in Arm}
    return Evidence(
        stage=look.stage,
        share=experiment.stages[look.stage],
        age_s=look.now - look.started,
        stage_age_s=look.now - look.stage_started,
        canary_units=sum(epoch.of(Arm.CANARY).matured for epoch in look.epochs),
        stage_units=sum(epoch.of(Arm.CANARY).judged for epoch in stage),
        tests=tuple(compare(experiment, test, look.epochs) for test in experiment.tests),
        ratio_assigned=unit_ratio(experiment, look.epochs, lambda tally: tally.assigned),
        ratio_judged=unit_ratio(experiment, look.epochs, lambda tally: tally.judged),
        coverage=coverages(experiment, look.epochs),
        cost_per_success={arm: cost_per_success(money[arm]) for arm in Arm},
        cost_ratio=cost_ratio(money[Arm.CANARY], money[Arm.TEACHER]),
        crown_alpha=experiment.crown_alpha,
        rollback_alpha=experiment.rollback_alpha,
    )


def _doubt(evidence: Evidence) -> str | None:
    """Why the comparison cannot be believed. Doubt stops what moves up, never what moves down."""
    if not evidence.ratio_assigned.sound:
        return "sample_ratio"
    if not evidence.ratio_judged.sound:
        return "sample_ratio_of_outcomes"
    return None if all(coverage.sound for coverage in evidence.coverage) else "outcomes_missing"


def _waiting(experiment: Experiment, evidence: Evidence) -> str | None:
    """What a step up waits for."""
    settings = experiment.settings
    if evidence.stage_units == 0:
        return "no_data"
    if evidence.stage_units < settings.min_units:
        return "few_units"
    return "young" if evidence.stage_age_s < settings.min_age_s else None


def _judge(experiment: Experiment, look: Look, evidence: Evidence) -> tuple[Verdict, str]:
    if look.trip is not None:
        return Verdict.ROLLBACK, look.trip.value
    settings, last = experiment.settings, experiment.is_last(look.stage)
    obstacle = _doubt(evidence) or _waiting(experiment, evidence)
    crowned = last and obstacle is None and all(result.crowns for result in evidence.tests)
    for result in evidence.tests:
        # A student that is surely a little worse than its champion, and surely within the margin, is promoted.
        if result.rolls_back and not (crowned and result.within_margin):
            return Verdict.ROLLBACK, f"{result.metric}_worse_than_{result.against}"
    if crowned:
        return Verdict.PROMOTE, "non_inferior"
    if evidence.age_s >= settings.max_age_s:
        return Verdict.EXPIRE, "max_age"
    if 0 < settings.max_canary_units <= evidence.canary_units:
        return Verdict.EXPIRE, "max_units"
    if obstacle is not None:
        return Verdict.HOLD, obstacle
    return (Verdict.HOLD, "evidence_open") if last else (Verdict.ADVANCE, "safe")


def decide(experiment: Experiment, look: Look) -> Decision:
    """The decision at one look; as often as one likes, the error rates hold over all looks together.

    Steps go up on safety: enough judged units, old enough, nothing against it. Only the last stage crowns, on evidence: not inferior in
    every comparison. A loss that is proven, or a trip-wire, rolls back at any stage.
    """
    evidence = weigh(experiment, look)
    verdict, reason = _judge(experiment, look, evidence)
    before, after = budget(experiment, look.stage)
    return Decision(verdict=verdict, reason=reason, evidence=evidence, alpha_before=before, alpha_after=after)


def budget(experiment: Experiment, stage: int) -> tuple[float, float]:
    """The lifetime alpha that was spent before this version, and is spent after its present stage."""
    alpha = experiment.settings.alpha
    before = spent_alpha(alpha, experiment.version)
    return before, before + (lifetime_alpha(alpha, experiment.version) if experiment.is_last(stage) else 0.0)
