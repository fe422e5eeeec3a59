"""The Pareto frontier and plot, and the base model's best number."""

from pathlib import Path

import pytest

from stillhouse.schemas.errors import UsageError
from stillhouse.schemas.messages import Message
from stillhouse.trainer.evaluation.base import measure_base
from stillhouse.trainer.evaluation.benchmark import BenchTask, ChatPolicy, Episode, TokenPrice
from stillhouse.trainer.evaluation.journal import read_journal
from stillhouse.trainer.evaluation.pareto import Pareto, pareto, plot
from stillhouse.trainer.evaluation.report import PolicyReport
from stillhouse.trainer.evaluation.runner import evaluate
from tests.trainer.evaluation.fakes import FakeBenchmark, episode, policy

SUCCESSES = {"teacher": 19, "old": 12, "new": 19, "dear": 18, "base": 0}
PRICES = {"teacher": 10.0, "old": 0.1, "new": 0.2, "dear": 5.0, "base": 0.1}


async def reports(path: Path) -> list[PolicyReport]:
    def play(name: str, task: BenchTask, times: int) -> bool:
        return int(task.id.split("-")[1]) < SUCCESSES[name]

    policies = [policy(n, TokenPrice(input_usd_per_mtok=p, output_usd_per_mtok=p)) for n, p in PRICES.items()]
    return list((await evaluate(FakeBenchmark(20, play), ["seen"], policies, journal=path)).policies)


async def test_the_cheapest_that_keeps_the_floor_is_the_operating_point(tmp_path: Path) -> None:
    found = pareto(await reports(tmp_path / "t.jsonl"), teacher="teacher")
    assert found.operating == "new"
    assert "50.0 times cheaper" in found.why
    assert {p.name for p in found.points if p.efficient} == {"old", "new"}
    assert next(p for p in found.points if p.name == "base").loaded_usd is None
    plot(found, tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")


async def test_without_a_good_student_the_teacher_stays(tmp_path: Path) -> None:
    only = [p for p in await reports(tmp_path / "t.jsonl") if p.name in ("teacher", "old")]
    found = pareto(only, teacher="teacher", part="seen")
    assert found.operating == "teacher"
    assert "no cheaper policy" in found.why
    with pytest.raises(UsageError):
        pareto(only, teacher="somebody")


def test_a_plot_of_nothing_that_succeeded_is_still_drawn(tmp_path: Path) -> None:
    plot(Pareto(points=(), operating="teacher", why=""), tmp_path / "p.png")
    assert (tmp_path / "p.png").exists()


async def test_the_base_models_best_way_counts_and_is_measured_once(tmp_path: Path) -> None:
    shots = (Message(role="user", content="q"), Message(role="assistant", content="a")) * 3

    class WithShots(FakeBenchmark):
        async def run(self, task: BenchTask, policy: ChatPolicy) -> Episode:
            self.begun[policy.name, task.id] = 1
            return episode(task, bool(policy.shots) and task.id == "seen-0")

    benchmark = WithShots(4, lambda *_: False)
    base = policy("base")
    first = await measure_base(benchmark, ["seen"], base, shots, base_id="b1", cache=tmp_path)
    assert (first.best.name, first.best.all.success.k) == ("base+3 shots", 1)
    assert [w.all.success.k for w in first.ways] == [0, 1]
    benchmark.begun.clear()
    assert await measure_base(benchmark, ["seen"], base, shots, base_id="b1", cache=tmp_path) == first
    assert not benchmark.begun
    report = tmp_path / "report" / "trajectories.jsonl"
    for _ in range(2):  # a second report of the same evaluation says nothing twice
        await measure_base(benchmark, ["seen"], base, shots, base_id="b1", cache=tmp_path, journal=report)
    assert [e.policy for e in read_journal(report)] == ["base"] * 4 + ["base+3 shots"] * 4
    await measure_base(benchmark, ["seen"], base, shots, base_id="b2", cache=tmp_path)
    assert len(benchmark.begun) == 8
