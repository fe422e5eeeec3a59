"""What the controller needs to know of itself, and of each route."""

import msgspec

from stillhouse.sdk.routes import RouteSettings
from stillhouse.serving.canary.experiment import CanarySettings

SECOND = 1_000_000
"""Times on the log are microseconds."""


class ControllerSettings(CanarySettings, frozen=True, kw_only=True):
    """The section `[canary]`: the statistics' settings, and the controller's own.

    Args:
        auto: start the newest registered student of a route by itself; else only what `students release` names.
        look_s: seconds between two looks.
        record_s: seconds between two records of a verdict to hold, so that the interval can be read over time; 0 records none.
        step_cap: steps of a trajectory that count as the worst.
        history_s: how far back traffic counts as history when a canary is planned.
    """

    auto: bool = True
    look_s: float = 1.0
    record_s: float = 3600.0
    step_cap: int = 30
    history_s: float = 14 * 86_400.0

    def of_canary(self, holdback: float) -> CanarySettings:
        """The part that is frozen with a canary, for a route with this holdback.

        Raises:
            UsageError: the last stage leaves no control beside the holdback.
        """
        ours = {name: getattr(self, name) for name in CanarySettings.__struct_fields__}
        return CanarySettings(**(ours | {"holdback": holdback}))


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a route says that its canaries go by.

    Args:
        route: its name.
        lineage: whose students it takes.
        sources: outcome sources in order of trust; without one the route only captures.
        horizon_us: how long an outcome may take.
        budget_usd: the most that a trajectory may cost.
        holdback: 0…1 of the units stay with the teacher for ever.
    """

    route: str
    lineage: str = ""
    sources: tuple[str, ...] = ("verifier",)
    horizon_us: int = 3600 * SECOND
    budget_usd: float = 1.0
    holdback: float = 0.02


def terms_of(name: str, route: RouteSettings) -> Terms:
    """What a route's settings mean for its canaries."""
    return Terms(
        route=name,
        lineage=route.lineage,
        sources=route.outcome_sources,
        horizon_us=round(route.horizon_s * SECOND),
        budget_usd=route.max_cost_usd,
        holdback=route.holdback,
    )
