"""The parts of a policy run together: behind one gate, in their order, and each pays its share of the one time."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from stillhouse.schemas.errors import UsageError
from stillhouse.trainer.evaluation.benchmark import BenchTask, ChatPolicy, Episode
from stillhouse.trainer.evaluation.journal import Entry, Journal, read_journal
from stillhouse.trainer.evaluation.report import EvaluationReport, Held, Outcome, PolicyReport, total_held
from stillhouse.trainer.evaluation.runner import EvaluationSettings, Step, evaluate
from tests.trainer.evaluation.fakes import REPLICA, FakeBenchmark, Replica, episode, policy

PARTS = ["seen", "unseen"]
STUDENT = policy("student", REPLICA)


def succeed(name: str, task: BenchTask, times: int) -> bool:
    return True


async def run(benchmark: FakeBenchmark, journal: Path, concurrency: int = 2, **kw: object) -> EvaluationReport:
    replica = Replica()
    defaults: dict[str, object] = {"parts": PARTS, "policies": [STUDENT], "busy": replica.busy, "clock": replica.clock}
    settings = EvaluationSettings(concurrency=concurrency, attempts=1)
    return await evaluate(benchmark, journal=journal, settings=settings, **(defaults | kw))  # type: ignore[arg-type]


class Waiting(FakeBenchmark):
    """Its tasks `stuck` end when `free` is set; notes who began and how many ran at once."""

    def __init__(self, tasks: int, stuck: Sequence[str] = ()) -> None:
        super().__init__(tasks, succeed)
        self.order: list[str] = []
        self.free, self._stuck, self._running, self.most = asyncio.Event(), stuck, 0, 0

    async def run(self, task: BenchTask, policy: ChatPolicy) -> Episode:
        self.order.append(task.id)
        self._running += 1
        self.most = max(self.most, self._running)
        await (self.free.wait() if task.id in self._stuck else asyncio.sleep(0))
        self._running -= 1
        return await super().run(task, policy)


class Freeing(Waiting):
    """The last part's first task lets the stuck ones go: it must begin before they end."""

    async def run(self, task: BenchTask, policy: ChatPolicy) -> Episode:
        if task.part == PARTS[-1]:
            self.free.set()
        return await super().run(task, policy)


async def test_the_next_part_begins_while_one_drains(tmp_path: Path) -> None:
    benchmark, steps = Freeing(3, ["seen-1"]), list[Step]()
    async with asyncio.timeout(30):  # parts in turn would wait for ever
        report = await run(benchmark, tmp_path / "t.jsonl", progress=steps.append)
    assert report.policy("student").all.success.n == 6
    assert benchmark.order == [f"{part}-{i}" for part in PARTS for i in range(3)]
    told = {part: [(s.done, s.total) for s in steps if s.part == part] for part in PARTS}
    assert told == {part: [(1, 3), (2, 3), (3, 3)] for part in PARTS}


@pytest.mark.parametrize("concurrency", [1, 3, 8])
async def test_one_gate_bounds_all_parts_of_a_policy(tmp_path: Path, concurrency: int) -> None:
    benchmark = Waiting(4)
    await run(benchmark, tmp_path / "t.jsonl", concurrency)
    assert benchmark.most == concurrency


async def test_policies_do_not_share_the_server(tmp_path: Path) -> None:
    benchmark = Waiting(2)
    report = await run(benchmark, tmp_path / "t.jsonl", 8, policies=[STUDENT, policy("other", REPLICA)])
    assert benchmark.most == 4
    assert len({e.segment for e in read_journal(tmp_path / "t.jsonl")}) == 2
    assert [p.held.busy_s for p in report.policies] == [pytest.approx(8.0)] * 2


class Longer(FakeBenchmark):
    """Requests of the last part take three times as long."""

    async def run(self, task: BenchTask, policy: ChatPolicy) -> Episode:
        return episode(task, True, latency_s=[0.5, 2.5 if task.part == "unseen" else 0.5])


async def test_a_part_pays_for_the_time_that_its_requests_were_in_flight(tmp_path: Path) -> None:
    report = await run(Longer(2, succeed), tmp_path / "t.jsonl")
    found = report.policy("student")
    assert found.held == Held(busy_s=8.0, wall_s=25.0)  # and not the last entry of each part, 4 + 8 and 15 + 25
    assert {p: r.held for p, r in found.parts.items()} == {
        "seen": Held(busy_s=2.0, wall_s=6.25), "unseen": Held(busy_s=6.0, wall_s=18.75),
    }  # fmt: skip
    assert found.cost.loaded_usd == pytest.approx(sum(p.cost.loaded_usd for p in found.parts.values()))
    assert found.parts["unseen"].cost.marginal_usd == pytest.approx(0.006)


async def test_killed_in_two_parts_it_runs_nothing_twice_and_loses_no_cost(tmp_path: Path) -> None:
    path, first = tmp_path / "t.jsonl", Waiting(3, ["seen-2", "unseen-1"])
    third = asyncio.Event()

    def kill(step: Step) -> None:
        if sum(first.begun.values()) == 3:
            third.set()

    killed = asyncio.create_task(run(first, path, progress=kill))
    await third.wait()
    killed.cancel()
    with pytest.raises(asyncio.CancelledError):
        await killed
    assert {task for _, task in first.begun} == {"seen-0", "seen-1", "unseen-0"}
    later = Waiting(3)
    report = await run(later, path)
    assert {task for _, task in later.begun} == {"seen-2", "unseen-1", "unseen-2"}
    found, entries = report.policy("student"), read_journal(path)
    assert set(Counter(e.outcome.task_id for e in entries).values()) == {1} and len(entries) == 6
    adds_up(found, longest(entries))
    assert longest(entries) == Held(busy_s=6.0 + 6.0, wall_s=20.0 + 20.0)
    assert await run(later, path) == report


def longest(entries: Sequence[Entry]) -> Held:
    """What the segments say, each by its longest entry."""
    segments = {e.segment: [o.held for o in entries if o.segment == e.segment] for e in entries}
    return Held(
        busy_s=sum(max(h.busy_s or 0.0 for h in found) for found in segments.values()),
        wall_s=sum(max(h.wall_s for h in found) for found in segments.values()),
    )


def adds_up(found: PolicyReport, whole: Held) -> None:
    parts = total_held(p.held for p in found.parts.values())
    for held in (found.held, parts):
        assert held.busy_s == pytest.approx(whole.busy_s)
        assert held.wall_s == pytest.approx(whole.wall_s)


def line(segment: str, part: str, held: Held, latency_s: Sequence[float] = (), n: int = 0) -> Entry:
    """A line of a journal; without latencies of an episode that is an error."""
    task = BenchTask(id=f"{part}-{n}", family="a", part=part, payload=None)
    played = episode(task, True, latency_s=list(latency_s)) if latency_s else None
    outcome = Outcome(task_id=task.id, family="a", part=part, episode=played, error=None if played else "no answer")
    return Entry(benchmark="fake", policy="student", model="student", run=0, outcome=outcome, segment=segment, held=held)


def shares(path: Path, *lines: Entry) -> dict[str, Held]:
    book = Journal(path)
    try:
        for one in lines:
            book.append(one)
        return {part: total_held(found) for part, found in book.held("fake", "student", "student").items()}
    finally:
        book.close()


def test_a_segment_of_one_part_is_all_that_parts(tmp_path: Path) -> None:
    """As journals were when parts ran in turn: a segment for each."""
    old = [
        line("1", "seen", Held(busy_s=1.0, wall_s=3.0), [9.0]),
        line("1", "seen", Held(busy_s=2.0, wall_s=5.0), [9.0], 1),
        line("2", "unseen", Held(busy_s=0.5, wall_s=0.7), [0.1]),
    ]
    before = {"seen": Held(busy_s=2.0, wall_s=5.0), "unseen": Held(busy_s=0.5, wall_s=0.7)}
    assert shares(tmp_path / "old.jsonl", *old) == before
    found = shares(
        tmp_path / "old.jsonl",
        line("3", "seen", Held(busy_s=3.0, wall_s=4.0), [1.0], 2),
        line("3", "unseen", Held(busy_s=4.0, wall_s=8.0), [3.0], 2),
    )
    assert found == {"seen": Held(busy_s=2.0 + 1.0, wall_s=5.0 + 2.0), "unseen": Held(busy_s=0.5 + 3.0, wall_s=0.7 + 6.0)}


def test_errors_alone_share_by_their_number_and_beside_episodes_pay_nothing(tmp_path: Path) -> None:
    held = Held(busy_s=4.0, wall_s=8.0)
    errors = [line("1", "seen", held), *(line("1", "unseen", held, n=n) for n in range(3))]
    assert shares(tmp_path / "1.jsonl", *errors) == {"seen": Held(busy_s=1.0, wall_s=2.0), "unseen": Held(busy_s=3.0, wall_s=6.0)}
    mixed = [line("1", "seen", held), line("1", "unseen", held, [1.0])]
    assert shares(tmp_path / "2.jsonl", *mixed) == {"seen": Held(busy_s=0.0, wall_s=0.0), "unseen": held}


def test_a_segment_that_does_not_say_its_busy_time_hides_that_of_its_parts_only(tmp_path: Path) -> None:
    found = shares(
        tmp_path / "t.jsonl",
        line("1", "seen", Held(busy_s=1.0, wall_s=2.0), [1.0]),
        line("1", "unseen", Held(busy_s=None, wall_s=4.0), [1.0]),  # the server was restarted: what it said before counts
        line("2", "unseen", Held(busy_s=None, wall_s=6.0), [1.0], 1),
    )
    assert found == {"seen": Held(busy_s=0.5, wall_s=2.0), "unseen": Held(busy_s=None, wall_s=2.0 + 6.0)}
    assert total_held([]) == Held(busy_s=None, wall_s=0.0)


async def test_a_part_without_tasks_hides_no_cost_and_one_given_twice_runs_once(tmp_path: Path) -> None:
    class Half(FakeBenchmark):
        def tasks(self, part: str) -> Sequence[BenchTask]:
            return super().tasks(part) if part == "seen" else ()

    benchmark = Half(2, succeed)
    found = (await run(benchmark, tmp_path / "t.jsonl", parts=["seen", "unseen", "seen"])).policy("student")
    assert set(benchmark.begun.values()) == {1} and found.all.episodes == 2
    assert found.held == found.parts["seen"].held == Held(busy_s=4.0, wall_s=15.0)
    assert found.parts["unseen"].held == total_held([])


async def test_one_part_of_a_journal_of_two_costs_its_share(tmp_path: Path) -> None:
    whole = await run(Longer(2, succeed), tmp_path / "t.jsonl")
    found = (await run(Longer(2, succeed), tmp_path / "t.jsonl", parts=["unseen"])).policy("student")
    assert found.held == whole.policy("student").parts["unseen"].held


async def test_a_part_that_does_not_exist_is_refused_before_anything_runs(tmp_path: Path) -> None:
    class Strict(FakeBenchmark):
        def tasks(self, part: str) -> Sequence[BenchTask]:
            if part not in PARTS:
                raise UsageError(f"no part {part}")
            return super().tasks(part)

    benchmark = Strict(2, succeed)
    with pytest.raises(UsageError, match="no part nowhere"):
        await run(benchmark, tmp_path / "t.jsonl", parts=["seen", "nowhere"])
    assert not benchmark.begun
