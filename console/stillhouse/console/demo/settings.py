"""What the demo does, as data. `--fast` is another set of values: no code asks which one it is."""

from collections.abc import Mapping
from dataclasses import dataclass, field

STAND_IN = "stand-in teacher (scripted), priced as {model} by genai-prices"
FIRST_FAMILIES = ("cancel", "address", "refund", "replace")


@dataclass(frozen=True)
class WindowPlan:
    """One window of the demo.

    Args:
        families: which task families the fleet works on; None for all.
        runs: how many tasks the teacher is given for it.
        size: how many kept trajectories the window takes, at most.
        replay: the share of earlier rows among its examples.
        by_failures: draw tasks and rows by the last student's failure rates on validation tasks.
        floor: what a family that never fails weighs then (a family that always fails weighs 1 more).
    """

    runs: int
    size: int
    families: tuple[str, ...] | None = None
    replay: float = 0.0
    by_failures: bool = False
    floor: float = 0.3


@dataclass(frozen=True)
class DemoSettings:
    """A demo. Money is in US dollars, time in seconds unless the name says otherwise."""

    claims: bool
    model: str
    windows: tuple[WindowPlan, ...]
    held_out: Mapping[str, int]
    validation_tasks: int
    recipe: str = "bc-trajectory"
    learning_rate: float = 2e-3
    batch_size: int = 2
    epochs: int = 1
    max_tokens: int = 255
    system_prompt: str = "Order desk agent."
    recovery_share: float = 0.25
    teacher_model: str = "gpt-4o"
    teacher_latency_ms: int = 250
    fleet: int = 24
    concurrency: int = 24
    replica_usd_per_hour: float = 0.10
    base_parts: tuple[str, ...] = ("seen", "unseen", "rephrased")
    training: Mapping[str, float] = field(default_factory=dict)

    @property
    def stand_in(self) -> str:
        """What every artefact says of the teacher."""
        return STAND_IN.format(model=self.teacher_model)


FULL = DemoSettings(
    claims=True,
    model="smollm2-135m",
    windows=(
        WindowPlan(runs=110, size=60, families=FIRST_FAMILIES),
        WindowPlan(runs=230, size=140, replay=1 / 3, by_failures=True),
        WindowPlan(runs=170, size=100, replay=1 / 2, by_failures=True),
    ),
    held_out={"seen": 24, "unseen": 24, "rephrased": 16},
    validation_tasks=24,
)

FAST = DemoSettings(
    claims=False,
    model="tiny",
    windows=(
        WindowPlan(runs=40, size=8, families=FIRST_FAMILIES),
        WindowPlan(runs=40, size=8, replay=1 / 3, by_failures=True),
        WindowPlan(runs=40, size=8, replay=1 / 2, by_failures=True),
    ),
    held_out={"seen": 3, "unseen": 3, "rephrased": 2},
    validation_tasks=8,
    teacher_latency_ms=5,
)
