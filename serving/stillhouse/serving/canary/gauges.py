"""A look as metrics: every number that a verdict used is one. Pure; the names are those of `schemas/metrics.py`."""

from collections.abc import Iterator
from typing import NamedTuple

from stillhouse.schemas.assign import Arm
from stillhouse.schemas.route_state import RouteState
from stillhouse.serving.canary.checks import SampleRatio
from stillhouse.serving.canary.cost import Ratio
from stillhouse.serving.canary.decide import Decision, Evidence, Result
from stillhouse.serving.canary.tally import EpochTally


class Sample(NamedTuple):
    """One value of one metric."""

    name: str
    labels: dict[str, str]
    value: float


def of_state(state: RouteState) -> Iterator[Sample]:
    """What a route serves."""
    route = {"route": state.route}
    yield Sample("stillhouse_canary_running", route, float(state.canary is not None))
    yield Sample("stillhouse_canary_paused", route, float(state.paused))
    yield Sample("stillhouse_canary_share", route, state.share)
    yield Sample("stillhouse_canary_stage", route, float(state.stage_index))
    yield Sample("stillhouse_canary_epoch", route, float(state.epoch))
    yield Sample("stillhouse_canary_final_tests", route, float(len(state.opened)))


def of_units(route: str, epochs: tuple[EpochTally, ...], excluded: dict[str, int]) -> Iterator[Sample]:
    """The units of a running canary."""
    for arm in Arm:
        tallies = [epoch.of(arm) for epoch in epochs]
        counts = {
            "assigned": sum(t.assigned for t in tallies),
            "matured": sum(t.matured for t in tallies),
            "judged": sum(t.judged for t in tallies),
        }
        for stage, count in counts.items():
            yield Sample("stillhouse_canary_units", {"route": route, "variant": arm.value, "stage": stage}, float(count))
    for reason, count in excluded.items():
        yield Sample("stillhouse_canary_excluded_units", {"route": route, "reason": reason}, float(count))


def of_decision(route: str, decision: Decision) -> Iterator[Sample]:
    """Every number of a look."""
    evidence, at = decision.evidence, {"route": route}
    yield Sample("stillhouse_canary_age_seconds", at, evidence.age_s)
    yield Sample("stillhouse_canary_stage_age_seconds", at, evidence.stage_age_s)
    yield Sample("stillhouse_canary_matured_units", at, float(evidence.canary_units))
    yield Sample("stillhouse_canary_stage_units", at, float(evidence.stage_units))
    for kind, alpha in {
        "crown": evidence.crown_alpha,
        "rollback": evidence.rollback_alpha,
        "lifetime_before": decision.alpha_before,
        "lifetime_after": decision.alpha_after,
    }.items():
        yield Sample("stillhouse_canary_alpha", at | {"reason": kind}, alpha)
    for result in evidence.tests:
        yield from _test(route, result)
    yield from _checks(route, evidence)
    for arm, ratio in evidence.cost_per_success.items():
        yield from _ratio("stillhouse_canary_cost_per_success_usd", at | {"variant": arm.value}, ratio)
    yield from _ratio("stillhouse_canary_cost_ratio", at, evidence.cost_ratio)


def _test(route: str, result: Result) -> Iterator[Sample]:
    at = {"route": route, "score": result.metric.value, "against": result.against.value}
    yield Sample("stillhouse_canary_test_units", at | {"variant": "canary"}, float(result.canary))
    yield Sample("stillhouse_canary_test_units", at | {"variant": "control"}, float(result.control))
    values = {
        "stillhouse_canary_difference": result.estimate,
        "stillhouse_canary_lower_bound": result.lower,
        "stillhouse_canary_upper_bound": result.upper,
        "stillhouse_canary_rollback_upper_bound": result.rollback_upper,
        "stillhouse_canary_rollback_below": result.rollback_below,
        "stillhouse_canary_margin": result.margin,
    }
    for name, value in values.items():
        if value is not None:
            yield Sample(name, at, value)


def _checks(route: str, evidence: Evidence) -> Iterator[Sample]:
    ratios: dict[str, SampleRatio] = {"assigned": evidence.ratio_assigned, "judged": evidence.ratio_judged}
    for stage, ratio in ratios.items():
        at = {"route": route, "stage": stage}
        yield Sample("stillhouse_canary_sample_ratio_units", at, float(ratio.units))
        yield Sample("stillhouse_canary_sample_ratio_excess", at, ratio.excess)
        yield Sample("stillhouse_canary_sample_ratio_limit", at, ratio.limit)
    for coverage in evidence.coverage:
        at = {"route": route, "against": coverage.against.value}
        yield Sample("stillhouse_canary_coverage_margin", at, coverage.margin)
        if coverage.bounds is not None:
            yield Sample("stillhouse_canary_coverage_difference", at, coverage.bounds.estimate)
            yield Sample("stillhouse_canary_coverage_lower_bound", at, coverage.bounds.lower)
            yield Sample("stillhouse_canary_coverage_upper_bound", at, coverage.bounds.upper)


def _ratio(name: str, labels: dict[str, str], ratio: Ratio | None) -> Iterator[Sample]:
    if ratio is None:
        return
    for bound, value in {"estimate": ratio.value, "low": ratio.low, "high": ratio.high}.items():
        if value is not None:
            yield Sample(name, labels | {"bound": bound}, value)
