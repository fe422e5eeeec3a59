"""A benchmark without a model, and policies to put in it."""

from collections.abc import Callable, Sequence

from stillhouse.schemas.events import Usage
from stillhouse.trainer.evaluation.benchmark import BenchTask, ChatPolicy, Episode, Price, ReplicaPrice, TokenPrice

TOKENS = TokenPrice(input_usd_per_mtok=2.0, output_usd_per_mtok=8.0)
REPLICA = ReplicaPrice(usd_per_hour=3.6)


def policy(name: str = "teacher", price: Price = TOKENS) -> ChatPolicy:
    return ChatPolicy(name=name, base_url=f"http://{name}/v1", model=name, price=price)


def episode(task: BenchTask, success: bool, **changes: object) -> Episode:
    fields: dict[str, object] = {
        "task_id": task.id, "family": task.family, "part": task.part, "success": success, "reply": "done", "steps": 2,
        "format_errors": 0, "error_calls": 0, "usage": Usage(input_tokens=1000, output_tokens=100), "latency_s": [0.5, 1.5],
        "messages": [], "outcome_reason": "",
    }  # fmt: skip
    return Episode(**(fields | changes))  # type: ignore[arg-type]


class FakeBenchmark:
    """`play(policy, task, times)` decides; `times` counts how often the task was begun for the policy."""

    name = "fake"

    def __init__(self, tasks: int, play: Callable[[str, BenchTask, int], bool], families: Sequence[str] = ("a", "b")) -> None:
        self.begun: dict[tuple[str, str], int] = {}
        self._n, self._play, self._families = tasks, play, families

    def tasks(self, part: str) -> Sequence[BenchTask]:
        return [
            BenchTask(id=f"{part}-{i}", family=self._families[i % len(self._families)], part=part, payload=None) for i in range(self._n)
        ]

    async def run(self, task: BenchTask, policy: ChatPolicy) -> Episode:
        key = (policy.name, task.id)
        self.begun[key] = self.begun.get(key, 0) + 1
        return episode(task, self._play(policy.name, task, self.begun[key]))


class Replica:
    """A server that computed 2 s for each episode, and a clock that ticks with it."""

    def __init__(self) -> None:
        self.asked = 0

    async def busy(self, base_url: str) -> float | None:
        self.asked += 1
        return 100.0 + 2.0 * (self.asked - 1)

    def clock(self) -> float:
        return float(5 * self.asked)
