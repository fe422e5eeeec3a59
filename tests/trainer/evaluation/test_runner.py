"""Evaluation: what is counted, what it costs, and what happens when a server fails or the evaluation is killed."""

import asyncio
import socket
from pathlib import Path

import openai
import pytest
from pytest_httpserver import HTTPServer

from stillhouse.schemas.errors import PermanentError, RetryableError
from stillhouse.trainer.evaluation.benchmark import BenchTask, ChatPolicy, Episode, ListPrice
from stillhouse.trainer.evaluation.journal import Journal, read_journal
from stillhouse.trainer.evaluation.report import EvaluationReport, compare
from stillhouse.trainer.evaluation.runner import EvaluationSettings, Step, evaluate
from tests.trainer.evaluation.fakes import REPLICA, TOKENS, FakeBenchmark, Replica, policy


async def no_wait(seconds: float) -> None:
    await asyncio.sleep(0)


async def silent(base_url: str) -> float | None:
    return None


def even(name: str, task: BenchTask, times: int) -> bool:
    return int(task.id.split("-")[1]) % 2 == 0


async def run(benchmark: FakeBenchmark, journal: Path, **kw: object) -> EvaluationReport:
    defaults: dict[str, object] = {"parts": ["seen"], "policies": [policy()], "busy": silent, "sleep": no_wait}
    return await evaluate(benchmark, journal=journal, **(defaults | kw))  # type: ignore[arg-type]


async def test_figures_per_policy_part_and_family(tmp_path: Path) -> None:
    report = await run(FakeBenchmark(8, even), tmp_path / "t.jsonl", parts=["seen", "unseen"])
    teacher = report.policy("teacher")
    assert (teacher.all.success.k, teacher.all.success.n) == (8, 16)
    assert {p: (r.all.success.k, r.all.success.n) for p, r in teacher.parts.items()} == {"seen": (4, 8), "unseen": (4, 8)}
    assert {f: m.success.value for f, m in teacher.parts["seen"].families.items()} == {"a": 1.0, "b": 0.0}
    assert teacher.all.steps_mean == 2
    assert teacher.all.format_error_rate == 0
    assert teacher.all.latency is not None
    assert (teacher.all.latency.p50_s, teacher.all.latency.p95_s) == (1.0, 1.5)
    assert teacher.all.usage.input_tokens == 16_000


async def test_a_teacher_is_paid_by_tokens(tmp_path: Path) -> None:
    report = await run(FakeBenchmark(4, even), tmp_path / "t.jsonl")
    cost = report.policy("teacher").cost
    assert cost.loaded_usd == cost.marginal_usd == pytest.approx(4 * (1000 * 2 + 100 * 8) / 1e6)
    assert cost.loaded_per_success_usd == pytest.approx(2 * (1000 * 2 + 100 * 8) / 1e6)
    assert "declared" in cost.basis


async def test_a_list_price_names_its_source(tmp_path: Path) -> None:
    report = await run(FakeBenchmark(2, even), tmp_path / "t.jsonl", policies=[policy(price=ListPrice(model="gpt-4o"))])
    assert report.policy("teacher").cost.loaded_usd > 0
    assert "genai-prices" in report.policy("teacher").cost.basis


async def test_a_student_is_paid_by_time_busy_and_held(tmp_path: Path) -> None:
    replica, settings = Replica(), EvaluationSettings(concurrency=1)
    one = policy("student", REPLICA)
    report = await run(
        FakeBenchmark(4, even), tmp_path / "t.jsonl", policies=[one], busy=replica.busy, clock=replica.clock, settings=settings
    )
    found = report.policy("student")
    assert (found.held.busy_s, found.held.wall_s) == (8.0, 25.0)
    assert found.cost.marginal_usd == pytest.approx(0.008)
    assert found.cost.loaded_per_success_usd == pytest.approx(0.025 / 2)


async def test_a_failing_server_is_asked_again(tmp_path: Path) -> None:
    def flaky(name: str, task: BenchTask, times: int) -> bool:
        if times < 3:
            raise RetryableError("the model answered 500")
        return True

    benchmark = FakeBenchmark(2, flaky)
    report = await run(benchmark, tmp_path / "t.jsonl")
    assert report.policy("teacher").all.success.value == 1.0
    assert set(benchmark.begun.values()) == {3}


async def test_what_keeps_failing_is_an_error_with_its_reason_and_in_no_rate(tmp_path: Path) -> None:
    def broken(name: str, task: BenchTask, times: int) -> bool:
        if task.id == "seen-1":
            raise RetryableError("the model answered 500")
        if task.id == "seen-2":
            raise PermanentError("the model answered 401")
        return True

    steps: list[Step] = []
    benchmark = FakeBenchmark(5, broken)
    report = await run(benchmark, tmp_path / "t.jsonl", progress=steps.append)
    found = report.policy("teacher").all
    assert found.errors == {"the model answered 500": 1, "the model answered 401": 1}
    assert (found.success.k, found.success.n, found.episodes) == (3, 3, 3)
    assert benchmark.begun["teacher", "seen-1"] == 3
    assert benchmark.begun["teacher", "seen-2"] == 1
    assert (steps[-1].done, steps[-1].total, steps[-1].errors) == (5, 5, 2)


class Asking(FakeBenchmark):
    """Lets the openai client raise what a server's status makes it raise; every task but `seen-1` goes well."""

    def __init__(self, url: str) -> None:
        super().__init__(3, even)
        self._url = url

    async def run(self, task: BenchTask, policy: ChatPolicy) -> Episode:
        found = await super().run(task, policy)
        if task.id == "seen-1":
            async with openai.AsyncOpenAI(base_url=self._url, api_key="none", max_retries=0) as client:
                await client.models.retrieve(policy.model)
        return found


@pytest.mark.parametrize(("status", "begun"), [(503, 3), (429, 3), (401, 1)])
async def test_a_status_of_the_openai_client_ends_an_episode_and_not_the_evaluation(
    tmp_path: Path, httpserver: HTTPServer, status: int, begun: int
) -> None:
    httpserver.expect_request("/models/teacher").respond_with_json({}, status=status)
    benchmark = Asking(httpserver.url_for(""))
    found = (await run(benchmark, tmp_path / "t.jsonl")).policy("teacher").all
    (reason,) = found.errors
    assert str(status) in reason and found.success.n == 2
    assert benchmark.begun["teacher", "seen-1"] == begun


async def test_a_server_that_hangs_up_is_asked_again(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        benchmark = Asking(f"http://127.0.0.1:{nobody.getsockname()[1]}")
        found = (await run(benchmark, tmp_path / "t.jsonl")).policy("teacher").all
    assert list(found.errors) == ["Connection error."] and found.success.n == 2
    assert benchmark.begun["teacher", "seen-1"] == 3


async def test_a_server_that_never_answers_ends_in_an_error(tmp_path: Path) -> None:
    class Hanging(FakeBenchmark):
        async def run(self, task: BenchTask, policy: ChatPolicy) -> Episode:
            await asyncio.Event().wait()
            raise AssertionError

    settings = EvaluationSettings(attempts=2, episode_timeout_s=0.01)
    report = await run(Hanging(1, even), tmp_path / "t.jsonl", settings=settings)
    (reason,) = report.policy("teacher").all.errors
    assert "0.01 s" in reason


async def test_a_bug_of_the_benchmark_is_not_swallowed(tmp_path: Path) -> None:
    def buggy(name: str, task: BenchTask, times: int) -> bool:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup):
        await run(FakeBenchmark(1, buggy), tmp_path / "t.jsonl")


async def test_a_killed_evaluation_goes_on_where_it_was_and_loses_no_cost(tmp_path: Path) -> None:
    path, replica = tmp_path / "t.jsonl", Replica()
    one, settings = policy("student", REPLICA), EvaluationSettings(concurrency=1)
    whole = FakeBenchmark(6, even)
    common: dict[str, object] = {"policies": [one], "settings": settings}
    await run(FakeBenchmark(3, even), path, busy=replica.busy, clock=replica.clock, **common)
    with path.open("ab") as file:  # the kill came in the middle of a line
        file.write(b'{"benchmark":"fake","pol')
    later = Replica()
    report = await run(whole, path, busy=later.busy, clock=later.clock, **common)
    assert len(whole.begun) == 3
    assert report.policy("student").all.success.n == 6
    assert report.policy("student").held.busy_s == 12.0
    lines = path.read_text().splitlines()
    assert len(lines) == 6
    again = await run(whole, path, busy=silent, **common)
    assert again == report


async def test_errors_are_tried_again_by_the_next_run(tmp_path: Path) -> None:
    def broken(name: str, task: BenchTask, times: int) -> bool:
        raise PermanentError("no key")

    path = tmp_path / "t.jsonl"
    await run(FakeBenchmark(2, broken), path)
    report = await run(FakeBenchmark(2, even), path)
    assert report.policy("teacher").all.errors == {}
    assert report.policy("teacher").all.success.n == 2


async def test_runs_of_a_task_give_pass_hat_k_and_one_vote(tmp_path: Path) -> None:
    def alternating(name: str, task: BenchTask, times: int) -> bool:
        return times % 2 == 0

    report = await run(FakeBenchmark(3, alternating), tmp_path / "t.jsonl", settings=EvaluationSettings(runs=4, concurrency=1))
    found = report.policy("teacher").all
    assert (found.success.n, found.success.value, found.episodes) == (3, 0.5, 12)
    assert found.pass_hat[1] == pytest.approx(0.5)
    assert found.pass_hat[2] == pytest.approx(1 / 6)


async def test_policies_are_compared_on_the_same_tasks(tmp_path: Path) -> None:
    def play(name: str, task: BenchTask, times: int) -> bool:
        return name == "teacher" or even(name, task, times)

    path = tmp_path / "t.jsonl"
    await run(FakeBenchmark(20, play), path, policies=[policy(), policy("student", TOKENS)])
    entries = read_journal(path)
    difference = compare(
        *[[e.outcome.episode for e in entries if e.policy == name and e.outcome.episode] for name in ("teacher", "student")]
    )
    assert (difference.value, difference.n) == (0.5, 20)
    assert difference.interval.low > 0


def test_a_journal_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": 1}\n')
    with pytest.raises(PermanentError, match="not an evaluated episode"):
        Journal(path)
