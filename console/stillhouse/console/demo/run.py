"""The demo's story: agents ask the gateway; windows, canaries, a champion; a noisy student and the champion again; evaluation."""

import asyncio
import resource
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from stillhouse.console import context
from stillhouse.console.demo import copies
from stillhouse.console.demo.accounts import Accounts, accounts_of
from stillhouse.console.demo.commands import cli, noisy_candidate
from stillhouse.console.demo.evaluation import Evaluated, evaluate_all
from stillhouse.console.demo.loop import Loop
from stillhouse.console.demo.phases import Phases
from stillhouse.console.demo.settings import ROUTE, DemoSettings, as_toml
from stillhouse.console.demo.sides import Sides, side_by_side
from stillhouse.console.demo.teacher import Teacher, command, stand_in
from stillhouse.console.demo.traffic import Traffic
from stillhouse.console.demo.trials import Trial, served
from stillhouse.console.demo.watch import Watch
from stillhouse.console.shadowing import brief
from stillhouse.console.stack.local import parts_of
from stillhouse.console.stack.parts import ANY_PORT
from stillhouse.console.stack.process import Process
from stillhouse.console.stack.stack import Stack, StackEvent
from stillhouse.examples.order_desk.agent import ChatSettings, connect
from stillhouse.examples.order_desk.rerun import Reruns
from stillhouse.examples.order_desk.tasks import FAMILIES
from stillhouse.schemas.errors import GateError
from stillhouse.sdk.client import Client
from stillhouse.sdk.runner import Runners
from stillhouse.trainer import models
from stillhouse.trainer import shadow as shadows
from stillhouse.trainer.jobs_parts import result_of
from stillhouse.trainer.windows_types import State, Window

Fields = dict[str, Any]
READY_S = 90.0
NEVER = 1_000_000_000


@dataclass
class Story:
    """What has happened so far. Jobs and losses are by the window's number, from 1; shadows, and what canaries served, by student."""

    jobs: dict[int, Fields] = field(default_factory=dict)
    rejected: dict[int, Fields] = field(default_factory=dict)
    losses: dict[int, list[tuple[int, float]]] = field(default_factory=dict)
    shadows: dict[str, Fields] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    served: dict[str, Fields] = field(default_factory=dict)
    champion: str | None = None
    reruns: int = 0
    accounts: Accounts | None = None
    sides: Sides | None = None
    evaluated: Evaluated | None = None
    notice: str = ""
    cpu_seconds: float = 0.0

    def trial(self, what: str) -> Trial | None:
        """The last trial of a kind; None when there was none."""
        return next((trial for trial in reversed(self.trials) if trial.what == what), None)


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
        """Where the tasks are kept that agents were given."""
        return self.state.resolve() / "tasks.jsonl"

    async def run(self, phases: Phases) -> Story:
        """Run all of it.

        Raises:
            GateError: every window was rejected, so there is no student.
            StillhouseError: a part could not start, or something that had to happen did not.
        """
        story = Story()
        with phases.phase("base model") as news:
            base = (
                models.tiny(self.state / "models" / f"tiny-{self.seed}", self.seed)
                if self._tiny
                else models.fetch(self.settings.model, progress=news)
            )
        self.state.mkdir(parents=True, exist_ok=True)
        async with self._teacher() as teacher:
            story.notice = teacher.notice
            config = self._configure(self.settings, base, teacher)
            with phases.phase("up") as news:
                stack = self._stack(base, config, news)
                await stack.start()
            try:
                await self._loop(stack, context.load(self.state, config), base, teacher, story, phases)
            finally:
                with phases.phase("down"):
                    await stack.stop()
        story.cpu_seconds = _cpu_seconds()
        return story

    def _configure(self, settings: DemoSettings, base: Path, teacher: Teacher) -> Path:
        config = self.state / "demo.toml"
        fresh = config.with_suffix(".tmp")
        fresh.write_text(as_toml(settings, base, self.seed, self.tasks_file, teacher))
        fresh.replace(config)
        return config

    @property
    def _tiny(self) -> bool:
        return self.settings.model == "tiny"

    @asynccontextmanager
    async def _teacher(self) -> AsyncIterator[Teacher]:
        """The real teacher, or the stand-in in a process of its own: gateway and signals must know its address when they start."""
        if self.teacher is not None:
            yield self.teacher
            return
        process = Process("teacher", command(self.settings.teacher_latency_ms), self.state / "logs" / "teacher.log", {})
        ready = await process.start(READY_S)
        try:
            yield stand_in(str(ready["url"]))
        finally:
            await process.stop()

    def _stack(self, base: Path, config: Path, news: Any) -> Stack:
        settings = replace(ANY_PORT, model=base, routes=True, config=config)

        def say(event: StackEvent) -> None:
            news(f"{event.part} {event.what}")

        return Stack(self.state, settings, parts_of(self.state, settings), on_event=say)

    async def _loop(self, stack: Stack, loaded: context.Context, base: Path, teacher: Teacher, story: Story, phases: Phases) -> None:
        """Everything between up and down."""
        watch = Watch(loaded.kafka, ROUTE)
        spool = loaded.config.state_dir("spool")
        await watch.start()
        try:
            async with (
                Client(settings=loaded.kafka, agent="order-desk", spool=spool / "fleet") as client,
                Client(settings=loaded.kafka, agent="order-desk-runner", spool=spool / "runner") as second,
                connect(teacher.url) as chat,
            ):
                url = f"{stack.record.gateway}/v1"
                traffic = Traffic(url, ROUTE, client, self.tasks_file, self.seed, self.settings.fleet)
                reruns = Reruns(traffic.given, chat, ChatSettings(model=teacher.model))
                loop = Loop(self.settings, loaded, stack, watch, traffic)
                async with _served(Runners(second, "default", loaded.kafka, loaded.store), reruns):
                    await self._windows(loop, base, teacher, story, phases)
                    if story.champion is not None:
                        await self._copies(loop, base, story, phases)
            story.reruns = reruns.done
            with phases.phase("accounts"):
                story.accounts = await accounts_of(loaded, stack.record, traffic.runs, reruns.done, reruns.cost_micro_usd)
                story.served = await asyncio.to_thread(served, loaded.store(), story.trials)
        finally:
            await watch.stop()
        if not story.jobs:
            raise GateError(
                f"every window was rejected, the last one: {list(story.rejected.values())[-1]['reason']}", where=str(self.state)
            )
        names = [str(job["student"]) for job in story.jobs.values()]
        story.sides = await asyncio.to_thread(side_by_side, teacher, str(stack.record.student), story.champion or names[-1], self.state)
        story.evaluated = await evaluate_all(self.settings, self.seed, loaded, stack.record, base, teacher, names, phases)

    async def _windows(self, loop: Loop, base: Path, teacher: Teacher, story: Story, phases: Phases) -> None:
        """Windows and canaries until a student is champion."""
        never = tuple(replace(window, min_kept=NEVER) for window in self.settings.windows)
        for number, window in enumerate(self.settings.windows, 1):
            with phases.phase(f"collect {number}") as news:
                await loop.collect(number, window.families or FAMILIES, news)
            with phases.phase(f"window {number}") as news:
                made = await loop.window(number, news)
                _enter(story, number, made)
                await asyncio.to_thread(self._note_shadow, made.student, story)
                news(_told(made))
            if made.state is not State.REGISTERED:
                continue
            # The trainer reads its settings at every look, and may look between a crown and whatever is written after it.
            self._configure(replace(self.settings, windows=never), base, teacher)
            with phases.phase(f"canary {number}") as news:
                decree = self.settings.decree == number
                await self._try(loop, made.student, f"window {number}", story, news, decree=decree)
            if story.champion is not None:
                return  # others are tried against the champion now; nobody new is made
            self._configure(self.settings, base, teacher)

    def _note_shadow(self, student: str, story: Story) -> None:
        if found := shadows.load(self.state / "run", self.state / "students" / student):
            story.shadows[student] = brief(found)

    async def _copies(self, loop: Loop, base: Path, story: Story, phases: Phases) -> None:
        """The champion with noise, released past the gate, and the champion again under another name."""
        folder, champion = self.state / "students", str(story.champion)
        with phases.phase("noisy student") as news, tempfile.TemporaryDirectory(dir=self.state) as draft:
            news("finding how much noise makes well-formed answers wrong")
            candidate = await noisy_candidate(base, folder / champion, Path(draft) / "candidate", self.seed)
            noisy = await asyncio.to_thread(copies.register_noisy, folder, champion, candidate)
            reason = "demo: an excellent manifest, and noise on the weights"
            await cli(self.state, "students", "release", noisy, "--route", ROUTE, "--skip-gate", "--reason", reason)
            await self._try(loop, noisy, "noisy", story, news)
        with phases.phase("champion again") as news:
            again = await asyncio.to_thread(copies.again, folder, champion)
            await cli(self.state, "students", "release", again, "--route", ROUTE, "--reason", "demo: A/A")
            await self._try(loop, again, "again", story, news, units=self.settings.again_units)

    async def _try(
        self, loop: Loop, student: str, what: str, story: Story, news: Any, *, decree: bool = False, units: int | None = None
    ) -> None:
        trial = await loop.trial(student, what, news, decree=decree, units=units)
        story.trials.append(trial)
        if trial.crowned:
            story.champion = student
        news(f"{student}: {trial.verdict} ({trial.reason}) after {trial.units['canary']} units, {trial.units['control']} of the control")


def _enter(story: Story, number: int, made: Window) -> None:
    result = msgspec.to_builtins(result_of(made))
    if made.state is not State.REGISTERED:  # a result too: its rows are back in the pool, and the next window draws from them
        story.rejected[number] = result
        return
    story.jobs[number] = result
    losses = made.trained.result.get("losses", ()) if made.trained else ()
    story.losses[number] = list(enumerate(losses, 1))


def _told(made: Window) -> str:
    if made.state is not State.REGISTERED:
        return f"rejected: {made.reason}"
    loss = made.trained.validation_loss if made.trained else None
    solved = made.evaluated.success if made.evaluated else None
    return f"{made.student}, validation loss {loss or 0:.3f}, {solved or 0:.0%} of the validation tasks"


@asynccontextmanager
async def _served(runners: Runners, reruns: Reruns) -> AsyncIterator[None]:
    """The desk's runner at work beside the block."""
    for family in FAMILIES:
        runners.add(family, reruns.__call__)
    stop = threading.Event()
    serving = asyncio.create_task(runners.arun(stop))
    try:
        yield
    finally:
        stop.set()
        await serving


def _cpu_seconds() -> float:
    """Of this process and all that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)
