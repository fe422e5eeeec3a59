"""What the demo does, as data. `--fast` is another set of values: no code asks which one it is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

REPLAY = "stillhouse.examples.order_desk.replay:DeskReplay.of_file"
FIRST_FAMILIES = ("cancel", "address", "refund", "replace")


@dataclass(frozen=True)
class DemoWindow:
    """One window of the demo.

    Args:
        families: which task families the fleet works on; None for all.
        runs: how many tasks the teacher is given for it.
        size: how many kept trajectories the window takes, at most.
        replay: earlier rows drawn again for each new one (a third, as here in the second window, is a quarter of all).
        by_failures: draw tasks and rows by the last student's failure rates on validation tasks.
        floor: what a family that never fails weighs then (one that always fails weighs 1 more).
        continue_rate: the peak learning rate, as a share of a fresh student's: the full one where there are families to learn, half
            of it where what is known is to settle (at the full rate a third window forgot what the second had learned).
    """

    runs: int
    size: int
    families: tuple[str, ...] | None = None
    replay: float = 0.0
    by_failures: bool = False
    floor: float = 0.3
    continue_rate: float = 1.0


@dataclass(frozen=True)
class DemoSettings:
    """A demo. Money is in US dollars, time in seconds unless the name says otherwise.

    Args:
        claims: whether its figures mean anything; False where a tiny random model stands in for the student's.
        model: the student's base model, a name of `models fetch`, or `tiny`.
        windows: what is collected and trained on, in order.
        held_out: tasks by part that teacher, base and all students are evaluated on.
        validation_tasks: tasks whose failures steer the next window; never held-out ones.
        trainer: `[trainer]` of the demo's settings file.
        window: `[window]` of it.
        ingest: `[ingest]` of it.
        teacher_latency_ms: what the stand-in teacher really sleeps for a request.
        answer_tokens: tokens of one answer of a student or the base model; what rambles is cut.
        fleet: agents at once.
        replica_usd_per_hour: the declared price of the machine that the student runs on.
    """

    claims: bool
    model: str
    windows: tuple[DemoWindow, ...]
    held_out: Mapping[str, int]
    validation_tasks: int
    trainer: Mapping[str, object]
    window: Mapping[str, object]
    ingest: Mapping[str, object] = field(default_factory=dict)
    teacher_latency_ms: int = 250
    answer_tokens: int = 64
    fleet: int = 32
    replica_usd_per_hour: float = 0.10


# The student's view of the desk: a prompt of four tokens, no tools in it, bare JSON. What the tools are is in the weights.
_TRAINER: dict[str, object] = {
    "recipe": "bc-trajectory",
    "system": "replace",
    "system_prompt": "Order desk agent.",
    "tools": "drop",
    "reasoning": "hide",
    "grammar": "bare-json",
    "context_limit": 320,
    "learning_rate": 2e-3,
    "warmup": 0.1,
    "batch_size": 2,
    "epochs": 1,
    "evaluations": 2,
    "threads": 2,
    "benchmark": "stillhouse.examples.order_desk.benchmark:OrderDeskBenchmark",
}
# A window continues the adapter of the one before it, however small the pool still is. A quarter of the corrected retries stays as
# context, the failed call masked: with it the longest runs need some 300 tokens, and a run that is cut into steps teaches less.
_WINDOW: dict[str, object] = {"recovery_share": 0.25, "max_tokens": 8_000}

FULL = DemoSettings(
    claims=True,
    model="smollm2-135m",
    windows=(
        DemoWindow(runs=130, size=60, families=FIRST_FAMILIES),
        # Families come in pairs that differ in an order's status alone: at a floor of 0.3 a window unlearned one of a pair for the other.
        DemoWindow(runs=300, size=140, replay=1 / 3, by_failures=True, floor=0.6),
        DemoWindow(runs=230, size=100, replay=1 / 2, by_failures=True, floor=1.0, continue_rate=0.5),
    ),
    held_out={"seen": 24, "unseen": 24, "rephrased": 16},
    validation_tasks=24,
    # Two dozen tasks give some 85 answers: one malformed one is 1.2 points, and one is chance.
    trainer={**_TRAINER, "validation_rows": 16, "probe_candidates": 16, "format_slack": 0.03},
    window=_WINDOW,
)

# Eight fixed tasks in all parts, a tiny random model, the same code.
FAST = DemoSettings(
    claims=False,
    model="tiny",
    windows=(
        DemoWindow(runs=40, size=8, families=FIRST_FAMILIES),
        DemoWindow(runs=40, size=8, replay=1 / 3, by_failures=True),
        DemoWindow(runs=40, size=8, replay=1 / 2, by_failures=True, continue_rate=0.5),
    ),
    held_out={"seen": 3, "unseen": 3, "rephrased": 2},
    validation_tasks=8,
    # A random model's losses and format errors are noise, and its tokens are short: no gate goes by them here.
    trainer={
        **_TRAINER,
        "context_limit": 2048,
        "validation_rows": 4,
        "probe_candidates": 16,
        "answer_tokens": 16,
        "format_slack": 1.0,
        "loss_slack": 100.0,
        "loss_gap": 100.0,
    },
    window=_WINDOW,
    teacher_latency_ms=5,
    answer_tokens=16,
)


def as_toml(settings: DemoSettings, base: Path, seed: int, tasks: Path) -> str:
    """The settings file that the demo's processes read. What curation prunes is played again on the desk of its task in `tasks`."""
    trainer = {"model": str(base), "seed": seed, "benchmark_tasks": settings.validation_tasks, **settings.trainer}
    window = {"seed": seed, "lineage": "demo", "environment": REPLAY, "environment_data": str(tasks), **settings.window}
    sections = {"trainer": trainer, "window": window, "ingest": dict(settings.ingest)}
    lines = ["# Written by `stillhouse demo`: everything that it sets."]
    for name, values in sections.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    # JSON's strings, numbers and booleans are TOML's too.
    return msgspec.json.encode(value).decode()
