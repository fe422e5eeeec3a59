"""The order desk as a benchmark: tasks by part, verified by the desk, played by the same agent as in production."""

from collections.abc import Mapping, Sequence

from stillhouse.examples.order_desk.agent import ChatSettings, EpisodeResult, connect, run_episode
from stillhouse.examples.order_desk.gold import clean_trajectory
from stillhouse.examples.order_desk.tasks import PARTS, DeskTask, make_tasks
from stillhouse.schemas.errors import UsageError
from stillhouse.schemas.messages import Message
from stillhouse.schemas.openai import to_openai
from stillhouse.trainer.evaluation.benchmark import BenchTask, ChatPolicy, Episode

SHOT_FAMILIES = ("refund", "cancel_shipped", "combo")


class OrderDeskBenchmark:
    """Implements `stillhouse.trainer.evaluation.benchmark.Benchmark`.

    Args:
        counts: part -> how many tasks; the families take turns.
        seed: the run's seed.
        timeout_s: the longest wait for one answer.
    """

    name = "order-desk"

    def __init__(self, counts: Mapping[str, int], seed: int, timeout_s: float = 120.0) -> None:
        unknown = sorted(set(counts) - set(PARTS))
        if unknown:
            raise UsageError(f"no such part: {', '.join(unknown)}", where="OrderDeskBenchmark", fix=f"Of: {', '.join(PARTS)}.")
        self._seed, self._timeout_s = seed, timeout_s
        self._tasks = {part: make_tasks(part, counts[part], seed, name="benchmark") for part in PARTS if part in counts}

    def tasks(self, part: str) -> Sequence[BenchTask]:
        """The tasks of one part, the same at every call.

        Raises:
            UsageError: this benchmark was made without that part.
        """
        if part not in self._tasks:
            raise UsageError(f"no tasks of the part {part!r}", where=self.name, fix=f"Of: {', '.join(self._tasks)}.")
        return [BenchTask(id=task.id, family=task.family, part=part, payload=task) for task in self._tasks[part]]

    def shots(self) -> tuple[Message, ...]:
        """Three worked examples for a base model, of training tasks, the shortest right way each."""
        tasks = make_tasks("train", len(SHOT_FAMILIES), self._seed, families=SHOT_FAMILIES, name="shots")
        return tuple(message for task in tasks for message in clean_trajectory(task))

    async def run(self, task: BenchTask, policy: ChatPolicy) -> Episode:
        """One episode on a fresh desk. Errors of the policy's server are raised: whoever runs the benchmark retries them."""
        if not isinstance(task.payload, DeskTask):
            raise UsageError("not a task of the order desk", where=task.id, fix="Pass a task that OrderDeskBenchmark.tasks() gave.")
        settings = ChatSettings(
            model=policy.model,
            temperature=policy.temperature,
            max_tokens=policy.max_tokens,
            attempts=1,
            shots=tuple(to_openai(policy.shots)),
        )
        async with connect(policy.base_url, policy.api_key, self._timeout_s) as chat:
            return _episode(task, await run_episode(task.payload, chat, settings))


def _episode(task: BenchTask, result: EpisodeResult) -> Episode:
    return Episode(
        task_id=task.id,
        family=task.family,
        part=task.part,
        success=result.verdict.success,
        reply=result.reply,
        steps=len(result.turns),
        format_errors=sum(turn.malformed for turn in result.turns),
        error_calls=sum(turn.failed for turn in result.turns),
        usage=result.usage,
        latency_s=[turn.latency_s for turn in result.turns],
        messages=result.messages,
        outcome_reason=result.verdict.reason,
    )
