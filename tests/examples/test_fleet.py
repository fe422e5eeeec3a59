"""A fleet: every run is published whole, a model that is away aborts its own runs only."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from aiohttp.typedefs import Handler
from confluent_kafka import Consumer, KafkaError, TopicPartition

from stillhouse.examples.order_desk.agent import ChatSettings
from stillhouse.examples.order_desk.environment import ENVIRONMENT
from stillhouse.examples.order_desk.fleet import AGENT, FleetReport, run_fleet
from stillhouse.examples.order_desk.pricing import NOTICE, STAND_IN
from stillhouse.examples.order_desk.replay import DeskReplay
from stillhouse.examples.order_desk.tasks import make_tasks
from stillhouse.examples.order_desk.teacher import make_app
from stillhouse.examples.order_desk.tools import SYSTEM_PROMPT, TOOLS
from stillhouse.schemas.codec import decode
from stillhouse.schemas.events import AgentEvent, Outcome, PolicyRole
from stillhouse.schemas.fold import fold
from stillhouse.schemas.topics import EVENTS
from stillhouse.schemas.trajectory import Status, Trajectory
from stillhouse.sdk.client import Client
from tests.support.brokers import start_embedded


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    running = start_embedded(tmp_path_factory.mktemp("fleet") / "broker", arguments=("--auto-create",))
    yield running.bootstrap
    running.stop()


def stored(bootstrap: str, tenant: str) -> dict[str, Trajectory]:
    """All trajectories of a tenant on the topic, folded, by task id."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "test", "enable.auto.commit": False, "enable.partition.eof": True})
    try:
        partitions = list(consumer.list_topics(EVENTS, timeout=20).topics[EVENTS].partitions)
        consumer.assign([TopicPartition(EVENTS, p, 0) for p in partitions])
        events: dict[str, list[AgentEvent]] = {}
        open_ends = set(partitions)
        while open_ends:
            record = consumer.poll(20)
            assert record is not None, "the broker sent nothing for 20 s"
            error = record.error()
            if error is not None:
                assert error.code() == KafkaError._PARTITION_EOF, error
                open_ends.discard(record.partition())
                continue
            event = decode(record.value() or b"", AgentEvent)
            events.setdefault(event.key, []).append(event)
    finally:
        consumer.close()
    folded = [fold(group) for group in events.values()]
    return {t.task.id or "": t for t in folded if t.tenant == tenant}


def client(bootstrap: str, tenant: str, spool: Path) -> Client:
    return Client(bootstrap, tenant=tenant, agent=AGENT, spool=spool)


async def test_every_run_is_published_as_it_was(broker: str, tmp_path: Path) -> None:
    tasks = make_tasks("train", 60, seed=1)
    told: list[int] = []
    async with TestServer(make_app(latency_ms=1)) as teacher:
        with client(broker, "whole", tmp_path) as publisher:
            url = str(teacher.make_url("/v1"))
            report = await run_fleet(tasks, url, STAND_IN, publisher, 16, lambda r: told.append(r.done))
            assert publisher.flush(30) == 0
    runs = stored(broker, "whole")
    assert set(runs) == {t.id for t in tasks} and told == list(range(1, 61))
    assert report.notice == NOTICE and report.cost_micro_usd == sum(s.cost_micro_usd or 0 for run in runs.values() for s in run.steps)
    replay = DeskReplay(tasks)
    for task in tasks:
        run = runs[task.id]
        assert run.status is Status.ENDED and run.environment == ENVIRONMENT and run.agent == AGENT
        assert (run.task.family, run.task.instruction) == (task.family, task.instruction)
        assert (run.system_prompt, list(run.tools)) == (SYSTEM_PROMPT, list(TOOLS))
        assert [(p.role, p.model) for p in run.policies] == [(PolicyRole.TEACHER, STAND_IN)]
        assert [m.text for s in run.steps for m in s.state] == [task.instruction]
        assert all(s.action.reasoning and s.usage.reasoning_tokens and s.cost_micro_usd and s.latency_ms for s in run.steps)
        assert replay(run, [s.action for s in run.steps]) == (run.outcome is Outcome.SUCCESS)
        assert run.reward == float(run.outcome is Outcome.SUCCESS)
    assert report.succeeded == sum(run.outcome is Outcome.SUCCESS for run in runs.values())
    assert {f: sum(row.values()) for f, row in report.families.items()} == {
        t.family: 60 // 8 + (i < 60 % 8) for i, t in enumerate(tasks[:8])
    }


async def test_a_broken_teacher_aborts_its_runs_and_the_others_go_on(broker: str, tmp_path: Path) -> None:
    tasks = make_tasks("train", 12, seed=2)
    unlucky = {task.instruction for task in tasks[::3]}
    app = make_app(latency_ms=1)

    @web.middleware
    async def break_some(request: web.Request, handler: Handler) -> web.StreamResponse:
        body = await request.json()
        answered = any(m["role"] == "tool" for m in body["messages"])
        if answered and any(m.get("content") in unlucky for m in body["messages"]):
            return web.Response(status=503, text="overloaded")
        return await handler(request)

    app.middlewares.append(break_some)
    async with TestServer(app) as teacher:
        with client(broker, "broken", tmp_path) as publisher:
            url = str(teacher.make_url("/v1"))
            report = await run_fleet(tasks, url, STAND_IN, publisher, 4, settings=ChatSettings(model="", attempts=2, backoff_s=0.001))
            assert publisher.flush(30) == 0
    assert report.done == 12 and report.aborted.total() == 4
    (reason,) = report.aborted
    assert "503" in reason and url in reason and "attempt 2 of 2" in reason
    runs = stored(broker, "broken")
    for task in tasks:
        run = runs[task.id]
        assert (run.outcome is Outcome.ABORTED) == (task.instruction in unlucky)
        assert run.status is Status.ENDED and len(run.steps) >= 1


async def test_nobody_there_aborts_every_run(broker: str, tmp_path: Path) -> None:
    with client(broker, "nobody", tmp_path) as publisher:
        once = ChatSettings(model="", attempts=1)
        report = await run_fleet(make_tasks("train", 3, seed=2), "http://127.0.0.1:1/v1", "m", publisher, settings=once)
        publisher.flush(30)
    assert report.aborted.total() == 3 and report.notice == "" and report.succeeded == 0
    assert all(run.outcome is Outcome.ABORTED and not run.steps for run in stored(broker, "nobody").values())


def test_from_the_command_line(broker: str, tmp_path: Path) -> None:
    module = "stillhouse.examples.order_desk"
    teacher = subprocess.Popen([sys.executable, "-m", f"{module}.teacher", "--latency-ms", "1"], stdout=subprocess.PIPE, text=True)
    try:
        assert teacher.stdout is not None
        url = json.loads(teacher.stdout.readline())["url"]
        command = [sys.executable, "-m", f"{module}.fleet", "--bootstrap-servers", broker, "--teacher-url", url, "--tenant", "cli"]
        wanted = ["--count", "10", "--families", "lost,combo", "--spool", str(tmp_path)]
        done = subprocess.run([*command, *wanted], capture_output=True, text=True, timeout=120)
        refused = subprocess.run([*command, "--families", "theft"], capture_output=True, text=True, timeout=60)
    finally:
        teacher.terminate()
        teacher.communicate(timeout=20)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["tasks"], report["unsent_events"], set(report["families"])) == (10, 0, {"lost", "combo"})
    assert "10 of 10 runs" in done.stderr
    assert len(stored(broker, "cli")) == 10
    assert refused.returncode == 2 and "no such task family: theft" in refused.stderr


def test_a_report_counts_what_it_is_told() -> None:
    report = FleetReport(tasks=2)
    task = make_tasks("train", 1, seed=1)[0]
    report.count(task, Outcome.FAILURE, "x", 3, 5)
    report.count(task, Outcome.ABORTED, "away", 1, 2)
    assert (report.done, report.failed, report.turns, report.cost_micro_usd) == (2, 1, 4, 7)
    assert report.families[task.family] == {"success": 0, "failure": 1, "aborted": 1} and report.aborted == {"away": 1}
