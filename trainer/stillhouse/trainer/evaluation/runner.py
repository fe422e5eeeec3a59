"""Runs policies on a benchmark: the same tasks for each, many episodes of all parts at once, nothing lost when it is killed.

A policy whose server fails is retried, then the episode is an error with its reason, and the evaluation goes on.
"""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import msgspec
import openai

from stillhouse.schemas.errors import RetryableError, StillhouseError
from stillhouse.trainer.evaluation.benchmark import Benchmark, BenchTask, ChatPolicy, Episode, ReplicaPrice
from stillhouse.trainer.evaluation.journal import Entry, Journal
from stillhouse.trainer.evaluation.replica import busy_seconds
from stillhouse.trainer.evaluation.report import EvaluationReport, Held, Outcome, PolicyReport, part_report, policy_report, total_held

Progress = Callable[["Step"], None]
Busy = Callable[[str], Awaitable[float | None]]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """How far a policy is on a part."""

    policy: str
    part: str
    done: int
    total: int
    succeeded: int
    errors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """How an evaluation runs.

    Attributes:
        concurrency: episodes at once, of all parts together; the student server batches as many.
        runs: times that each task is run, for pass^k.
        attempts: times that an episode is begun before it counts as an error.
        episode_timeout_s: an episode that takes longer counts as a server that gives no answer.
        backoff_s: wait before the second attempt; it doubles.
    """

    concurrency: int = 32
    runs: int = 1
    attempts: int = 3
    episode_timeout_s: float = 600.0
    backoff_s: float = 0.5


async def evaluate(
    benchmark: Benchmark,
    parts: Sequence[str],
    policies: Sequence[ChatPolicy],
    *,
    journal: Path,
    settings: EvaluationSettings = EvaluationSettings(),
    progress: Progress = lambda step: None,
    busy: Busy = busy_seconds,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> EvaluationReport:
    """Evaluate policies one after the other, so that each one's replica time is its own; the parts of a policy together.

    Args:
        benchmark: gives tasks and runs them.
        parts: the parts to run; a part's tasks begin when those of the parts before it have begun.
        policies: who is evaluated.
        journal: the JSON-lines file that every episode goes to; what it holds already is not run again.
        settings: how.
        progress: told after every episode, of whichever part.
        busy: seconds that the server at an address has computed, None when it does not say.
        clock: seconds, monotonic.
        sleep: waits between attempts.

    Raises:
        UsageError: no such part, or a list price that is not known.
        PermanentError: the journal cannot be read.
    """
    book = Journal(journal)
    try:
        reports = []
        for policy in policies:
            run = _Run(benchmark, policy, settings, book, progress, busy, clock, sleep)
            reports.append(await run.policy(parts))
        return EvaluationReport(benchmark=benchmark.name, policies=tuple(reports))
    finally:
        book.close()


@dataclass(frozen=True, slots=True)
class _Part:
    """One part of a policy: its outcomes as they come, and what is to be run (a task, and which run of it)."""

    name: str
    total: int
    outcomes: list[Outcome]
    todo: list[tuple[BenchTask, int]]


@dataclass(frozen=True, slots=True)
class _Segment:
    """One policy in this process: when it began, and what its server had computed by then."""

    id: str
    began: float
    busy_s: float | None

    def computed(self, busy_s: float | None) -> float | None:
        """Seconds that the server has computed since; not known when it does not say, or was restarted: it counts from zero again."""
        if busy_s is None or self.busy_s is None or busy_s < self.busy_s:
            return None
        return busy_s - self.busy_s


class _Run:
    """One policy."""

    def __init__(
        self, benchmark: Benchmark, policy: ChatPolicy, settings: EvaluationSettings, book: Journal, progress: Progress,
        busy: Busy, clock: Callable[[], float], sleep: Callable[[float], Awaitable[None]],
    ) -> None:  # fmt: skip
        self._benchmark, self._policy, self._settings, self._book = benchmark, policy, settings, book
        self._progress, self._busy, self._clock, self._sleep = progress, busy, clock, sleep

    async def policy(self, parts: Sequence[str]) -> PolicyReport:
        found = self._look_up(parts)
        await self._play(found)
        shares = self._book.held(self._benchmark.name, self._policy.name, self._policy.model)
        held = {part.name: shares.get(part.name, []) for part in found}
        reports = [part_report(p.name, p.outcomes, total_held(held[p.name]), self._policy.price) for p in found]
        everything = [outcome for part in found for outcome in part.outcomes]
        total = total_held(chain.from_iterable(held.values()))
        return policy_report(self._policy.name, self._policy.model, reports, everything, total, self._policy.price)

    def _look_up(self, parts: Sequence[str]) -> list[_Part]:
        """What the journal has of each part, and what it does not."""
        entries = self._book.of(self._benchmark.name, self._policy.name, self._policy.model)
        known = {(e.outcome.part, e.outcome.task_id, e.run): e.outcome for e in entries}
        found = []
        for part in dict.fromkeys(parts):
            tasks = [(task, run) for task in self._benchmark.tasks(part) for run in range(self._settings.runs)]
            outcomes = [known[part, task.id, run] for task, run in tasks if (part, task.id, run) in known]
            todo = [(task, run) for task, run in tasks if (part, task.id, run) not in known]
            found.append(_Part(part, len(tasks), outcomes, todo))
        return found

    async def _play(self, parts: Sequence[_Part]) -> None:
        """Run what is to be run, all parts behind one gate: the next part fills the server's batch while one drains."""
        todo = [(part, task, run) for part in parts for task, run in part.todo]
        if not todo:
            return
        segment = _Segment(uuid.uuid4().hex, self._clock(), await self._computed())
        gate = asyncio.Semaphore(self._settings.concurrency)  # lets in the first that came, so parts begin in their order

        async def one(part: _Part, task: BenchTask, run: int) -> None:
            async with gate:
                outcome = await self._outcome(task)
                self._keep(segment, run, outcome, await self._computed())
                part.outcomes.append(outcome)
                self._progress(self._step(part))

        async with asyncio.TaskGroup() as group:
            for part, task, run in todo:
                group.create_task(one(part, task, run))

    def _keep(self, segment: _Segment, run: int, outcome: Outcome, busy_now: float | None) -> None:
        """Write an outcome to the journal, with the time since the segment began."""
        held = Held(busy_s=segment.computed(busy_now), wall_s=self._clock() - segment.began)
        self._book.append(
            Entry(
                benchmark=self._benchmark.name, policy=self._policy.name, model=self._policy.model, run=run,
                outcome=outcome, segment=segment.id, held=held,
            )
        )  # fmt: skip

    async def _computed(self) -> float | None:
        """Seconds that the policy's server has computed; nobody asks a provider for that."""
        return await self._busy(self._policy.base_url) if isinstance(self._policy.price, ReplicaPrice) else None

    async def _outcome(self, task: BenchTask) -> Outcome:
        """An episode, begun anew when the policy's server fails; its reason when it keeps failing."""
        attempts = self._settings.attempts
        for attempt in range(1, attempts + 1):
            try:
                return Outcome(task_id=task.id, family=task.family, part=task.part, episode=await self._episode(task))
            except (RetryableError, OSError) as error:
                reason = str(error) or type(error).__name__
            except openai.APIError as error:
                reason = str(error)
                if isinstance(error, openai.APIStatusError) and not _may_pass(error.status_code):
                    break
            except StillhouseError as error:
                reason = str(error)
                break  # asking again would not help
            if attempt < attempts:
                await self._sleep(self._settings.backoff_s * 2 ** (attempt - 1))
        return Outcome(task_id=task.id, family=task.family, part=task.part, error=reason)

    async def _episode(self, task: BenchTask) -> Episode:
        seconds = self._settings.episode_timeout_s
        try:
            async with asyncio.timeout(seconds) as limit:
                return await self._benchmark.run(task, self._policy)
        except TimeoutError as error:
            if limit.expired():
                raise RetryableError(f"no end of the episode within {seconds:g} s", where=self._policy.base_url) from error
            raise

    def _step(self, part: _Part) -> Step:
        found = part.outcomes
        return Step(
            policy=self._policy.name, part=part.name, done=len(found), total=part.total,
            succeeded=sum(bool(o.episode and o.episode.success) for o in found), errors=sum(o.error is not None for o in found),
        )  # fmt: skip


def _may_pass(status: int) -> bool:
    """Whether the same request may be answered another time."""
    return status >= 500 or status in (408, 409, 429)
