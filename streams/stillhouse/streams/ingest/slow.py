"""From which latency on a request counts as slow: what the run's route says, else ingest's own setting."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from stillhouse.schemas.events import Assignment


@dataclass(frozen=True)
class SlowLimits:
    """Milliseconds, by route and for what came through none."""

    default_ms: float = 10_000.0
    routes: Mapping[str, float] = field(default_factory=dict)

    def of(self, assignment: Assignment | None) -> float:
        """The limit of a run."""
        return self.default_ms if assignment is None else self.routes.get(assignment.route, self.default_ms)


EVERYWHERE_ALIKE = SlowLimits()
