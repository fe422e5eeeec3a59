"""Trip-wires as the facts tell them. The gateway sees each reply and may trip sooner; both only ever roll back."""

from collections.abc import Iterable, Iterator

from stillhouse.schemas.events import PolicyRole
from stillhouse.schemas.facts import TrajectoryFacts
from stillhouse.serving.canary.tripwires import Health, Limits, Trip, tripped

LIMITS = Limits()


def trip_of(canary: Iterable[TrajectoryFacts], limits: Limits = LIMITS) -> Trip | None:
    """The first wire that a canary's trajectories have tripped.

    Requests that never reached the student (not loaded yet, as after each restart of the gateway, or not covered) are no errors of its:
    the guardrail on fallbacks has those. Trajectories in which it was never asked are passed over. Facts don't say which request of a
    trajectory failed: usable actions are taken to come last, so that only whole trajectories make a row of malformed ones.

    Args:
        canary: its trajectories, in the order in which they were last heard of.
        limits: when a wire trips.
    """
    health = Health()
    for facts in canary:
        for malformed, error in _requests(facts):
            health = health.request(malformed=malformed, error=error, limits=limits)
            if (trip := tripped(health, limits)) is not None:
                return trip
    return None


def _requests(facts: TrajectoryFacts) -> Iterator[tuple[bool, bool]]:
    """(malformed, failed) of each request."""
    if not any(policy.role is PolicyRole.STUDENT for policy in facts.policies):
        return
    malformed = min(facts.scores.format_errors, facts.requests)
    failed = min(facts.student_failures, facts.requests - malformed)
    yield from [(True, False)] * malformed
    yield from [(False, True)] * failed
    yield from [(False, False)] * (facts.requests - malformed - failed)
