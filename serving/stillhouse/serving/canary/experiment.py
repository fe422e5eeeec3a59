"""What one canary has settled before its first unit: stages, margins, tests, and every number that tunes them."""

from collections.abc import Mapping
from math import fsum, pi

import msgspec

from stillhouse.schemas.assign import Arm, Shares, stage_shares
from stillhouse.schemas.errors import UsageError
from stillhouse.serving.canary.sequence import Moments, tuned_rho
from stillhouse.serving.canary.units import GUARDRAILS, Metric, Scales

ROLLBACK_UNITS = 300
"""Units of both arms at which a rollback test is sharpest: a bad student should not need the whole canary."""
DAY = 86_400.0


class CanarySettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a route's canaries: section `[canary]`.

    Args:
        stages: shares of the canary, growing; the last is the one that crowns.
        margin: how much less success than champion and teacher is accepted, 0…1.
        format_margin: the same for the share of malformed actions,
        steps_margin: for steps as a share of their cap,
        latency_margin: for the share of requests over the latency limit,
        fallback_margin: and for the share of requests that the teacher had to answer.
        alpha: the route's false promotions over all its versions, and the false rollbacks of one canary.
        min_units: judged canary units of a stage before the next, and of each arm before a crown.
        rollback_canary_units: units of the canary before a rollback by evidence,
        rollback_control_units: and of its control.
        min_age_s: seconds in each stage.
        max_age_s: seconds of the whole canary.
        max_canary_units: matured canary units after which it has expired; 0 is no limit.
        coverage_margin: the difference of outcome coverage between arms that is accepted, 0…1.
        ratio_alpha: of each side of the sample ratio test.
        daily_units: canary units a day that the first stage gives at least.
        holdback: units that stay with the teacher for ever, 0…1.
    """

    stages: tuple[float, ...] = (0.01, 0.05, 0.10, 0.25, 0.50)
    margin: float = 0.05
    format_margin: float = 0.02
    steps_margin: float = 0.02
    latency_margin: float = 0.02
    fallback_margin: float = 0.02
    alpha: float = 0.05
    min_units: int = 20
    rollback_canary_units: int = 5
    rollback_control_units: int = 20
    min_age_s: float = 3600.0
    max_age_s: float = 14 * DAY
    max_canary_units: int = 0
    coverage_margin: float = 0.02
    ratio_alpha: float = 0.0005
    daily_units: float = 20.0
    holdback: float = 0.02

    def __post_init__(self) -> None:
        """Refuse what no test can be made of."""
        growing = all(a < b for a, b in zip(self.stages, self.stages[1:], strict=False))
        if not self.stages or not growing or self.stages[0] <= 0 or self.stages[-1] + self.holdback >= 1:
            raise UsageError(f"no stages: {self.stages}", where="[canary] stages", fix="Give growing shares between 0 and 1.")
        margins = (self.margin, *(self.guardrail_margin(metric) for metric in GUARDRAILS))
        if not (0 < self.alpha < 0.5 and min(margins) > 0):
            raise UsageError("alpha is between 0 and 1/2, margins are positive", where="[canary]")

    def guardrail_margin(self, metric: Metric) -> float:
        """The margin of one guardrail."""
        margins = {
            Metric.FORMAT: self.format_margin,
            Metric.STEPS: self.steps_margin,
            Metric.LATENCY: self.latency_margin,
            Metric.FALLBACKS: self.fallback_margin,
        }
        return margins[metric]


class Test(msgspec.Struct, frozen=True, kw_only=True):
    """One comparison of the canary with one reference.

    Args:
        metric: what is compared.
        against: champion or teacher.
        margin: crowning needs the lower bound above minus this.
        crown_rho: tunes the bounds that crown.
        rollback_below: an upper bound below this rolls back; None where this comparison never does.
        rollback_rho: tunes the bounds that roll back.
    """

    metric: Metric
    against: Arm
    margin: float
    crown_rho: float
    rollback_below: float | None = None
    rollback_rho: float = 1.0


class Experiment(msgspec.Struct, frozen=True, kw_only=True):
    """A canary's frozen settings. Publish it with the first verdict: whoever resumes must not compute it again.

    Args:
        name: id and salt of the experiment.
        student: the canary.
        champion: whether the route has one.
        stages: the shares of this canary.
        version: k, 1 + versions of the route whose final test has opened.
        crown_alpha: of every crowning bound of this version.
        rollback_alpha: of every rollback bound: alpha over their number.
        planned_units: of all arms up to the maximum age.
        tests: in the order in which they are reported.
        ratio_rho: tunes the sample ratio test.
        coverage_rho: tunes the comparison of outcome coverage, by reference.
    """

    name: str
    route: str
    student: str
    champion: bool
    stages: tuple[float, ...]
    settings: CanarySettings
    scales: Scales
    version: int
    crown_alpha: float
    rollback_alpha: float
    planned_units: float
    tests: tuple[Test, ...]
    ratio_rho: float
    coverage_rho: dict[Arm, float]

    def is_last(self, stage: int) -> bool:
        """Whether this stage is the one that crowns."""
        return stage == len(self.stages) - 1

    def shares(self, stage: int) -> Shares:
        """The allocation of a stage."""
        return stage_shares(
            self.stages[stage],
            champion=self.champion,
            last=self.is_last(stage),
            holdback=self.settings.holdback,
            route=self.route,
        )


def lifetime_alpha(alpha: float, version: int) -> float:
    """The part of alpha that version k of a route may spend: 6 alpha / (pi k)²; over all k they add up to alpha.

    Raises:
        UsageError: versions are counted from 1.
    """
    if version < 1:
        raise UsageError(f"versions are counted from 1, not {version}")
    return 6 * alpha / (pi * version) ** 2


def spent_alpha(alpha: float, version: int) -> float:
    """What the versions before this one have spent."""
    return fsum(lifetime_alpha(alpha, earlier) for earlier in range(1, version))


def planned_stages(settings: CanarySettings, units_per_day: float) -> tuple[float, ...]:
    """The stages of a route with so much traffic: a small one starts where its first stage gets enough units a day."""
    wanted = settings.daily_units / units_per_day if units_per_day > 0 else 1.0
    start = min(max(settings.stages[0], wanted), settings.stages[-1])
    return (start, *(share for share in settings.stages if share > start))


def _references(champion: bool) -> tuple[Arm, ...]:
    return (Arm.CHAMPION, Arm.TEACHER) if champion else (Arm.TEACHER,)


def _comparisons(settings: CanarySettings, champion: bool) -> list[tuple[Metric, Arm, float, float | None]]:
    """Metric, reference, margin, and where a rollback begins.

    Guardrails are held against who carries the traffic now: the champion, or the teacher while there is none. Cost is held against the
    teacher, whose money a student is to save: no retrained student would be surely cheaper than its own like.
    """
    found: list[tuple[Metric, Arm, float, float | None]] = []
    for arm in _references(champion):
        found.append((Metric.SUCCESS, arm, settings.margin, 0.0 if arm is Arm.CHAMPION else -settings.margin))
    incumbent = _references(champion)[0]
    for metric in GUARDRAILS:
        margin = settings.guardrail_margin(metric)
        found.append((metric, incumbent, margin, -margin))
    found.append((Metric.COST, Arm.TEACHER, 0.0, None))
    return found


def plan(
    *,
    name: str,
    route: str,
    student: str,
    champion: bool,
    settings: CanarySettings,
    scales: Scales,
    version: int,
    units_per_day: float,
    history: Mapping[Arm, Mapping[Metric, Moments]],
    coverage: Mapping[Arm, Moments] | None = None,
) -> Experiment:
    """Settle everything of a canary before its first unit.

    Args:
        name: id and salt, never used before.
        route: the route.
        student: the canary.
        champion: whether the route has one.
        settings: of the route.
        scales: what makes numbers scores.
        version: k, 1 + versions of the route whose final test has opened.
        units_per_day: of the route, over the last days.
        history: the references' sums before the start; what is missing counts as a variance of 1/4.
        coverage: the references' outcome coverage before the start, likewise.

    Raises:
        UsageError: settings that no test can be made of.
    """
    comparisons = _comparisons(settings, champion)
    crown_alpha = lifetime_alpha(settings.alpha, version)
    rollback_alpha = settings.alpha / sum(below is not None for *_, below in comparisons)
    stages = planned_stages(settings, units_per_day)
    last = stage_shares(stages[-1], champion=champion, last=True, holdback=settings.holdback, route=route)
    planned = max(units_per_day * settings.max_age_s / DAY, 2.0 * settings.min_units)
    if settings.max_canary_units:
        planned = min(planned, settings.max_canary_units / last.canary)

    def pair(arm: Arm) -> float:
        """Of one unit of both arms: the canary's share times the reference's, at the final stage."""
        treated = last.canary / (last.canary + last.of(arm))
        return treated * (1 - treated)

    def test(metric: Metric, arm: Arm, margin: float, below: float | None) -> Test:
        unit = pair(arm) * history.get(arm, {}).get(metric, Moments()).variance
        return Test(
            metric=metric,
            against=arm,
            margin=margin,
            crown_rho=tuned_rho(planned * unit, crown_alpha),
            rollback_below=below,
            rollback_rho=tuned_rho(ROLLBACK_UNITS * unit, rollback_alpha),
        )

    known = coverage or {}
    return Experiment(
        name=name,
        route=route,
        student=student,
        champion=champion,
        stages=stages,
        settings=settings,
        scales=scales,
        version=version,
        crown_alpha=crown_alpha,
        rollback_alpha=rollback_alpha,
        planned_units=planned,
        tests=tuple(test(*comparison) for comparison in comparisons),
        ratio_rho=tuned_rho(planned * last.canary * (1 - last.canary), settings.ratio_alpha),
        coverage_rho={
            arm: tuned_rho(planned * pair(arm) * known.get(arm, Moments()).variance, settings.alpha) for arm in _references(champion)
        },
    )
