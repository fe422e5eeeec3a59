"""Whether what an engine serves under a student's name is that student: decided from its probes. Pure.

Each probe is a sequence with the log-probabilities that student, parent and base give its tokens. What is served must be near the
student's and far from the others'. The tolerance is relative: two engines compute the same model with different rounding, and a
student that differs little from its parent leaves little room between the two.
"""

import math
from collections.abc import Sequence

from stillhouse.schemas.student_folder import Probe, distance
from stillhouse.serving.gateway.backend import Attestation, Verdict

SHARE, LIMIT, NEAR = 0.25, 0.1, 0.05
"""Of the distance to the nearest other; nats from the student at most; nats below which two models are not told apart."""
EQUAL, LEAST = 14 / 16, 8
"""Greedy actions that must be equal, of how many at least."""

Scores = Sequence[float]


def judge(probes: Sequence[Probe], served: Sequence[Scores]) -> Attestation:
    """Judge by log-probabilities.

    Args:
        probes: the student's.
        served: what the engine gives each probe's tokens but the first, in the same order.
    """
    if not probes:
        return _refused("the student has no probes", {})
    if any(len(p.student) != len(s) or not all(map(math.isfinite, s)) for p, s in zip(probes, served, strict=True)):
        return _refused("the engine's log-probabilities are not of these tokens", {})
    student, others = [p.student for p in probes], _others(probes)
    own = _mean(student, served)
    numbers = {"student": own} | {name: _mean(scores, served) for name, scores in others.items()}
    apart = {name: _mean(scores, student) for name, scores in others.items()}
    numbers |= {f"student_to_{name}": nats for name, nats in apart.items()} | {"probes": float(len(probes))}
    if own >= LIMIT:
        return _refused(f"{own:.3f} nats a token from the student, {LIMIT} at most", numbers)
    told = {name: numbers[name] for name, nats in apart.items() if nats >= NEAR}
    for name, nats in told.items():
        if own >= SHARE * nats:
            return _refused(f"{own:.3f} nats a token from the student and only {nats:.3f} from its {name}", numbers)
    if len(told) < len(others):
        alike = " and ".join(name for name in others if name not in told)
        reason = f"its {alike} gives the same within {NEAR} nat: accepted on its files' sha256 and its name"
        return Attestation(verdict=Verdict.INDISTINGUISHABLE, reason=reason, numbers=numbers)
    return Attestation(verdict=Verdict.ACCEPTED, reason=f"{own:.3f} nats a token from the student", numbers=numbers)


def judge_greedy(equal: Sequence[bool]) -> Attestation:
    """Judge by greedy actions alone, for an engine that gives no log-probabilities: the weaker proof, and it says so.

    Args:
        equal: for each action whether the engine wrote what the student writes.
    """
    numbers = {"actions": float(len(equal)), "equal": float(sum(equal))}
    said = f"{sum(equal)} of {len(equal)} greedy actions equal, without log-probabilities"
    if len(equal) < LEAST:
        return _refused(f"no log-probabilities, and only {len(equal)} actions that tell the student from others", numbers)
    if sum(equal) < math.ceil(EQUAL * len(equal)):
        return _refused(said, numbers)
    return Attestation(verdict=Verdict.ACCEPTED, reason=said, numbers=numbers)


def _others(probes: Sequence[Probe]) -> dict[str, list[Scores]]:
    found: dict[str, list[Scores]] = {"base": [p.base for p in probes]}
    parents = [p.parent for p in probes if p.parent is not None]
    return found | {"parent": list(parents)} if len(parents) == len(probes) else found


def _mean(one: Sequence[Scores], other: Sequence[Scores]) -> float:
    """Mean over all tokens of all probes, so that a short probe counts no more than its tokens."""
    tokens = sum(map(len, one))
    return sum(distance(a, b) * len(a) for a, b in zip(one, other, strict=True)) / tokens


def _refused(reason: str, numbers: dict[str, float]) -> Attestation:
    return Attestation(verdict=Verdict.REFUSED, reason=reason, numbers=numbers)
