"""Runs policies on a benchmark: the same tasks for each, many episodes at once, nothing lost when it is killed.

A policy whose server fails is retried, then the episode is an error with its reason, and the evaluation goes on.
"""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import openai

from stillhouse.schemas.errors import RetryableError, StillhouseError
from stillhouse.trainer.evaluation.benchmark import Benchmark, BenchTask, ChatPolicy, Episode, ReplicaPrice
from stillhouse.trainer.evaluation.journal import Entry, Journal
from stillhouse.trainer.evaluation.replica import busy_seconds
from stillhouse.trainer.evaluation.report import EvaluationReport, Held, Outcome, PartReport, PolicyReport, part_report, policy_report

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
        concurrency: episodes at once; the student server batches as many.
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
    """Evaluate policies one after the other, so that each one's replica time is its own.

    Args:
        benchmark: gives tasks and runs them.
        parts: the parts to run.
        policies: who is evaluated.
        journal: the JSON-lines file that every episode goes to; what it holds already is not run again.
        settings: how.
        progress: told after every episode.
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


class _Run:
    """One policy."""

    def __init__(
        self, benchmark: Benchmark, policy: ChatPolicy, settings: EvaluationSettings, book: Journal, progress: Progress,
        busy: Busy, clock: Callable[[], float], sleep: Callable[[float], Awaitable[None]],
    ) -> None:  # fmt: skip
        self._benchmark, self._policy, self._settings, self._book = benchmark, policy, settings, book
        self._progress, self._busy, self._clock, self._sleep = progress, busy, clock, sleep

    async def policy(self, parts: Sequence[str]) -> PolicyReport:
        reports: list[PartReport] = []
        everything: list[Outcome] = []
        for part in parts:
            outcomes = await self._part(part)
            held = self._book.held(self._benchmark.name, self._policy.name, self._policy.model, part)
            reports.append(part_report(part, outcomes, held, self._policy.price))
            everything += outcomes
        return policy_report(self._policy.name, self._policy.model, reports, everything, self._policy.price)

    async def _part(self, part: str) -> list[Outcome]:
        """Run what the journal does not have; all outcomes of the part."""
        tasks = [(task, run) for task in self._benchmark.tasks(part) for run in range(self._settings.runs)]
        known = {
            (e.outcome.task_id, e.run): e.outcome for e in self._book.of(self._benchmark.name, self._policy.name, self._policy.model, part)
        }
        outcomes = [known[task.id, run] for task, run in tasks if (task.id, run) in known]
        todo = [(task, run) for task, run in tasks if (task.id, run) not in known]
        if not todo:
            return outcomes
        segment, began, busy_then = uuid.uuid4().hex, self._clock(), await self._computed()
        gate = asyncio.Semaphore(self._settings.concurrency)

        async def one(task: BenchTask, run: int) -> None:
            async with gate:
                outcome = await self._outcome(task)
                busy_now = await self._computed()
                # A restarted server counts from zero again: then what it computed before is not known.
                computed = busy_now - busy_then if busy_now is not None and busy_then is not None and busy_now >= busy_then else None
                held = Held(busy_s=computed, wall_s=self._clock() - began)
                self._book.append(
                    Entry(
                        benchmark=self._benchmark.name, policy=self._policy.name, model=self._policy.model, run=run,
                        outcome=outcome, segment=segment, held=held,
                    )
                )  # fmt: skip
                outcomes.append(outcome)
                self._progress(self._step(part, outcomes, len(tasks)))

        async with asyncio.TaskGroup() as group:
            for task, run in todo:
                group.create_task(one(task, run))
        return outcomes

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

    def _step(self, part: str, outcomes: Sequence[Outcome], total: int) -> Step:
        return Step(
            policy=self._policy.name, part=part, done=len(outcomes), total=total,
            succeeded=sum(bool(o.episode and o.episode.success) for o in outcomes), errors=sum(o.error is not None for o in outcomes),
        )  # fmt: skip


def _may_pass(status: int) -> bool:
    """Whether the same request may be answered another time."""
    return status >= 500 or status in (408, 409, 429)
