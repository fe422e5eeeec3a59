"""What the demo does, as data. `--fast` is another set of values: no code asks which one it is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from stillhouse.console.demo.teacher import Teacher

REPLAY = "stillhouse.examples.order_desk.replay:DeskReplay.of_file"
# `combo` begins as `cancel` does and goes on where that ends: learned a window later, it was never told from it (0 of 9 tasks after
# three windows, or `cancel` was lost for it); learned together with it, both are known after two.
FIRST_FAMILIES = ("cancel", "address", "refund", "combo")


@dataclass(frozen=True)
class DemoWindow:
    """One window of the demo.

    Args:
        families: which task families the agents work on until it begins; None for all.
        min_kept: new teacher successes that the trainer waits for.
        size: how many kept trajectories the window takes, at most.
        replay: earlier rows drawn again for each new one (a third, as here in the second window, is a quarter of all).
        floor: what a family weighs that the last student never failed on validation tasks (one that it always failed weighs 1 more).
        continue_rate: the peak learning rate, as a share of a fresh student's: the full one where there are families to learn, half
            of it where what is known is to settle (at the full rate a third window forgot what the second had learned).
    """

    min_kept: int
    size: int
    families: tuple[str, ...] | None = None
    replay: float = 0.0
    floor: float = 0.3
    continue_rate: float = 1.0


@dataclass(frozen=True)
class DemoSettings:
    """A demo. Money is in US dollars, time in seconds unless the name says otherwise.

    Args:
        claims: whether its figures mean anything; False where a tiny random model stands in for the student's.
        model: the student's base model, a name of `models fetch`, or `tiny`.
        windows: what is collected and trained on, in order, until a student is champion.
        held_out: tasks by part that teacher, base and all students are evaluated on.
        validation_tasks: tasks whose failures steer the next window; never held-out ones.
        trainer: `[trainer]` of the demo's settings file.
        window: `[window]` of it.
        ingest: `[ingest]` of it.
        canary: `[canary]` of it.
        route: `[routes.desk]` of it, without the teacher.
        decree: the window whose student is crowned by hand, for a model that never would be; None: by evidence alone.
        canary_runs: runs of agents for one canary, at most.
        again_units: units of the champion under another name that are looked at.
        most_runs: runs of agents for one window, at most.
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
    canary: Mapping[str, object]
    route: Mapping[str, object]
    ingest: Mapping[str, object] = field(default_factory=dict)
    decree: int | None = None
    canary_runs: int = 700
    again_units: int = 24
    most_runs: int = 900
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
    "learning_rate": 1.5e-3,
    "warmup": 0.1,
    "batch_size": 1,
    "epochs": 1,
    "evaluations": 2,
    "threads": 2,
    "benchmark": "stillhouse.examples.order_desk.benchmark:OrderDeskBenchmark",
}
# A window continues the adapter of the one before it, however small the pool still is. A quarter of the corrected retries stays as
# context, the failed call masked: with it the longest runs need some 300 tokens, and a run that is cut into steps teaches less.
_WINDOW: dict[str, object] = {"recovery_share": 0.25, "max_tokens": 8_000, "continue_below_teacher": True, "min_requested": 1_000_000}
# Small and quick, and open about it: margins of 15 points are told apart within 150 units, those of a real route are 2 to 5.
_CANARY: dict[str, object] = {
    "stages": [0.25, 0.5],
    "margin": 0.15,
    "format_margin": 0.15,
    "steps_margin": 0.15,
    "latency_margin": 0.15,
    "fallback_margin": 0.15,
    "alpha": 0.15,
    "min_age_s": 5.0,
    "max_age_s": 1800.0,
    "max_canary_units": 150,
    "look_s": 0.5,
    "record_s": 2.0,
}
_ROUTE: dict[str, object] = {"horizon_s": 5.0, "max_cost_usd": 0.25, "latency_limit_ms": 20_000.0, "student_timeout_s": 60.0}
# Signals look at the store every two seconds here; what a student failed is done again by the teacher, a few a family.
SIGNALS: dict[str, object] = {"refresh": 2.0, "family_tasks_per_day": 8}
ROUTE = "desk"

FULL = DemoSettings(
    claims=True,
    model="smollm2-135m",
    windows=(
        DemoWindow(min_kept=110, size=64, families=FIRST_FAMILIES),
        # Families come in pairs that differ in an order's status alone: at a floor of 0.3 a window unlearned one of a pair for the other.
        DemoWindow(min_kept=330, size=150, replay=1 / 3, floor=0.6),
        DemoWindow(min_kept=230, size=100, replay=1 / 2, floor=1.0, continue_rate=0.5),
        DemoWindow(min_kept=230, size=100, replay=1 / 2, floor=1.0, continue_rate=0.5),
    ),
    held_out={"seen": 24, "unseen": 24, "rephrased": 16},
    validation_tasks=24,
    # Two dozen tasks give some 85 answers: one malformed one is 1.2 points, and one is chance.
    trainer={**_TRAINER, "shadow_steps": 24, "validation_rows": 16, "probe_candidates": 16, "format_slack": 0.03},
    window=_WINDOW,
    canary=_CANARY,
    route=_ROUTE,
)

# Eight fixed tasks in all parts, a tiny random model, the same code.
FAST = DemoSettings(
    claims=False,
    model="tiny",
    windows=(
        DemoWindow(min_kept=24, size=8, families=FIRST_FAMILIES),
        DemoWindow(min_kept=24, size=8, replay=1 / 3),
    ),
    held_out={"seen": 3, "unseen": 3, "rephrased": 2},
    validation_tasks=8,
    # A random model's losses and format errors are noise, and its tokens are short: no gate goes by them here, and no shadow is asked.
    trainer={
        **_TRAINER,
        "shadow_steps": 0,
        "context_limit": 2048,
        "validation_rows": 4,
        "probe_candidates": 16,
        "answer_tokens": 16,
        "format_slack": 1.0,
        "loss_slack": 100.0,
        "loss_gap": 100.0,
    },
    window=_WINDOW,
    canary=_CANARY | {"min_age_s": 1.0, "max_canary_units": 16},
    route=_ROUTE | {"horizon_s": 2.0},
    decree=2,
    canary_runs=120,
    again_units=5,
    most_runs=120,
    teacher_latency_ms=5,
    answer_tokens=16,
)


def as_toml(settings: DemoSettings, base: Path, seed: int, tasks: Path, teacher: Teacher) -> str:
    """The settings file that the demo's processes read. What curation prunes is played again on the desk of its task in `tasks`."""
    quick = {"look_s": 1.0, "trial_grace_s": 120.0, "nice": 0}
    trainer = {"model": str(base), "seed": seed, "benchmark_tasks": settings.validation_tasks, **quick, **settings.trainer}
    steps = [
        {"size": w.size, "replay": w.replay, "family_floor": w.floor, "min_kept": w.min_kept, "continue_rate": w.continue_rate}
        for w in settings.windows
    ]
    window = {"seed": seed, "lineage": ROUTE, "environment": REPLAY, "environment_data": str(tasks), **settings.window, "schedule": steps}
    asked = {"teacher_url": teacher.url, "teacher_model": teacher.model, "price_model": teacher.priced_as}
    served = {"replica_usd_per_hour": settings.replica_usd_per_hour, **settings.route}
    sections = {
        "trainer": trainer,
        "window": window,
        "ingest": dict(settings.ingest),
        "signals": SIGNALS,
        "canary": dict(settings.canary),
        f"routes.{ROUTE}": asked | served,
    }
    lines = ["# Written by `stillhouse demo`: everything that it sets."]
    for name, values in sections.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # JSON's strings, numbers and booleans are TOML's too.
    return msgspec.json.encode(value).decode()
