"""A unit of an experiment and its scores: one number y ∈ [0, 1] a metric, higher is better."""

from enum import StrEnum

import msgspec

from stillhouse.schemas.events import Outcome
from stillhouse.schemas.facts import TrajectoryFacts
from stillhouse.serving.canary.cost import Money, cost_score
from stillhouse.serving.canary.sequence import MICRO


class Metric(StrEnum):
    """What is compared. Success and cost need an outcome, the guardrails do not."""

    SUCCESS = "success"
    COST = "cost"
    FORMAT = "format_errors"
    STEPS = "steps"
    LATENCY = "latency"
    FALLBACKS = "fallbacks"


GUARDRAILS = (Metric.FORMAT, Metric.STEPS, Metric.LATENCY, Metric.FALLBACKS)


class Scales(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a unit's numbers scores; frozen at the start of an experiment.

    Args:
        step_cap: steps that count as the worst.
        budget_usd: c, the most that a trajectory of the route may cost.
        price_usd: κ, the control's cost per success before the canary.
        source: the one outcome source of the experiment (`verifier`, …); empty takes any.
    """

    step_cap: int = 30
    budget_usd: float = 1.0
    price_usd: float = 0.0
    source: str = ""


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over the trajectories of one unit, whoever served them: fallbacks and take-overs are its arm's.

    Args:
        trajectories: all of them.
        judged: those with an outcome of the experiment's source.
        successes: of the judged.
        judged_micro_usd: cost of the judged, each counted up to the budget.
        slow_requests: over the route's latency limit.
    """

    trajectories: int = 0
    judged: int = 0
    successes: int = 0
    judged_micro_usd: int = 0
    steps: int = 0
    format_errors: int = 0
    requests: int = 0
    slow_requests: int = 0
    fallbacks: int = 0

    def __add__(self, other: "Unit") -> "Unit":
        """Both together."""
        return Unit(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})


def unit_of(facts: TrajectoryFacts, scales: Scales) -> Unit:
    """What one trajectory adds to its unit. An aborted one has an outcome: it is no success."""
    judged = facts.outcome is not Outcome.UNKNOWN and scales.source in ("", facts.outcome_source)
    return Unit(
        trajectories=1,
        judged=int(judged),
        successes=int(judged and facts.outcome is Outcome.SUCCESS),
        judged_micro_usd=min(facts.cost_micro_usd, round(scales.budget_usd * MICRO)) if judged else 0,
        steps=facts.scores.steps,
        format_errors=facts.scores.format_errors,
        requests=facts.requests,
        slow_requests=facts.slow_requests,
        fallbacks=facts.fallbacks,
    )


def _share(count: int, total: int) -> float:
    """How much of the total, at most all; nothing of nothing."""
    return min(1.0, count / total) if total else 0.0


def scores(unit: Unit, scales: Scales) -> dict[Metric, float]:
    """The scores of a unit; without an outcome it has none of success and cost."""
    found = {
        Metric.FORMAT: 1 - _share(unit.format_errors, unit.steps),
        Metric.STEPS: 1 - _share(unit.steps, unit.trajectories * scales.step_cap),
        Metric.LATENCY: 1 - _share(unit.slow_requests, unit.requests),
        Metric.FALLBACKS: 1 - _share(unit.fallbacks, unit.requests),
    }
    if unit.judged:
        found[Metric.SUCCESS] = unit.successes / unit.judged
        cost = unit.judged_micro_usd / unit.judged / MICRO
        found[Metric.COST] = cost_score(cost, found[Metric.SUCCESS], budget=scales.budget_usd, price=scales.price_usd)
    return found


def money_of(unit: Unit) -> Money:
    """Cost and success of a unit, means over its judged trajectories; nothing without one."""
    if not unit.judged:
        return Money()
    return Money.of(unit.judged_micro_usd / unit.judged / MICRO, unit.successes / unit.judged)
