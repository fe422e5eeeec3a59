"""The demo's story: collect, train, draw the next window by what the student failed, evaluate, report."""

import resource
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stillhouse.console import context, training
from stillhouse.console.demo.collect import collect
from stillhouse.console.demo.evaluation import Evaluated, evaluate_all
from stillhouse.console.demo.phases import Phases
from stillhouse.console.demo.settings import DemoSettings, DemoWindow, as_toml
from stillhouse.console.demo.teacher import Teacher, part, stand_in
from stillhouse.console.stack.local import parts_of
from stillhouse.console.stack.parts import ANY_PORT
from stillhouse.console.stack.stack import Stack, StackEvent
from stillhouse.examples.order_desk.replay import save_tasks
from stillhouse.examples.order_desk.tasks import FAMILIES, make_tasks
from stillhouse.schemas.errors import GateError
from stillhouse.trainer import models
from stillhouse.trainer.windows_pool import family_weights
from stillhouse.trainer.windows_types import State

Fields = dict[str, Any]


@dataclass
class Story:
    """What has happened so far. Jobs and losses are by the window's number, from 1."""

    jobs: dict[int, Fields] = field(default_factory=dict)
    rejected: dict[int, Fields] = field(default_factory=dict)
    losses: dict[int, list[tuple[int, float]]] = field(default_factory=dict)
    teacher_usd: float = 0.0
    evaluated: Evaluated | None = None
    notice: str = ""
    cpu_seconds: float = 0.0


@dataclass(frozen=True)
class Demo:
    """One run of the demo.

    Args:
        settings: what it does.
        seed: everything random derives from it, by name.
        state: the state folder; new or empty of trajectories of another seed.
        teacher: a real teacher, or None for the stand-in.
    """

    settings: DemoSettings
    seed: int
    state: Path
    teacher: Teacher | None = None

    @property
    def tasks_file(self) -> Path:
        """Where the tasks are kept that the fleet was given."""
        return self.state.resolve() / "tasks.jsonl"

    async def run(self, phases: Phases) -> Story:
        """Run all of it.

        Raises:
            GateError: every window was rejected, so there is no student.
            StillhouseError: a part could not start, or a run did not arrive.
        """
        story = Story()
        with phases.phase("base model") as news:
            base = self._base(news)
        self.state.mkdir(parents=True, exist_ok=True)
        config = self.state / "demo.toml"
        config.write_text(as_toml(self.settings, base, self.seed, self.tasks_file))
        loaded = context.load(self.state, config)
        with phases.phase("up") as news:
            stack = self._stack(base, config, news)
            await stack.start()
        try:
            teacher = self.teacher or stand_in(str(stack.announced("teacher", "url")))
            story.notice = teacher.notice
            for number, window in enumerate(self.settings.windows, 1):
                await self._window(number, window, loaded, teacher, story, phases)
            if not story.jobs:
                raise GateError(f"every window was rejected, the last one: {story.rejected[number]['reason']}", where=str(self.state))
            names = [str(job["student"]) for job in story.jobs.values()]
            story.evaluated = await evaluate_all(self.settings, self.seed, loaded, stack.record, base, teacher, names, phases)
        finally:
            with phases.phase("down"):
                await stack.stop()
        story.cpu_seconds = _cpu_seconds()
        return story

    def _base(self, news: Any) -> Path:
        if self.settings.model == "tiny":
            return models.tiny(self.state / "models" / f"tiny-{self.seed}", self.seed)
        return models.fetch(self.settings.model, progress=news)

    def _stack(self, base: Path, config: Path, news: Any) -> Stack:
        settings = replace(ANY_PORT, model=base, config=config)
        parts = parts_of(self.state, settings)
        if self.teacher is None:
            parts = (*parts, part(self.settings.teacher_latency_ms))

        def say(event: StackEvent) -> None:
            news(f"{event.part} {event.what}")

        return Stack(self.state, settings, parts, on_event=say)

    async def _window(
        self, number: int, window: DemoWindow, loaded: context.Context, teacher: Teacher, story: Story, phases: Phases
    ) -> None:
        rates = list(story.jobs.values())[-1]["evaluation"]["failure_rates"] if window.by_failures and story.jobs else None
        families = window.families or FAMILIES
        weights = family_weights(rates, FAMILIES, window.floor) if rates is not None else dict.fromkeys(families, 1.0)
        drawn = weights if rates is not None else None  # the first tasks are taken in turn
        tasks = make_tasks("train", window.runs, self.seed, families=families, weights=drawn, name=f"window-{number}")
        save_tasks(self.tasks_file, tasks)
        with phases.phase(f"collect {number}") as news:
            spool = loaded.config.state_dir("spool")
            report = await collect(tasks, teacher.url, teacher.model, loaded.kafka, spool, loaded.store(), self.settings.fleet, news)
            story.teacher_usd += report.cost_micro_usd / 1e6
        with phases.phase(f"window {number}") as news:
            await self._train(number, window, weights, loaded, story, news)

    async def _train(
        self, number: int, window: DemoWindow, weights: Mapping[str, float], loaded: context.Context, story: Story, news: Any
    ) -> None:
        losses = story.losses.setdefault(number, [])

        def tell(event: Fields) -> None:
            if event["event"] == "train" and event["kind"] == "step" and event.get("loss") is not None:
                losses.append((event["step"], event["loss"]))
            news(training.describe(event))

        overrides = {"window.size": window.size, "window.replay": window.replay, "trainer.continue_rate": window.continue_rate}
        options = [f"--mode={'continue' if story.jobs else 'fresh'}", *(f"--weight={f}={w}" for f, w in weights.items())]
        result = await training.job(loaded, overrides, options, tell)
        if result["state"] == State.REJECTED:  # a result too: its rows are back in the pool, and the next window draws from them
            story.rejected[number] = result
            news(f"rejected: {result['reason']}")
            return
        story.jobs[number] = result
        solved = result["evaluation"].get("success")
        news(f"{result['student']}, validation loss {result['validation_loss']:.3f}, {solved:.0%} of the validation tasks")


def _cpu_seconds() -> float:
    """Of this process and all that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)
