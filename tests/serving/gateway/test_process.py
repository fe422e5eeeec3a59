"""The gateway as a process on the embedded broker: events become rows, kill -9 loses nothing, the topic `students` is followed."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from confluent_kafka import Producer

from stillhouse.examples.order_desk.pricing import STAND_IN
from stillhouse.schemas import codec
from stillhouse.schemas.events import AgentEvent, StepTaken
from stillhouse.schemas.fold import fold
from stillhouse.schemas.topics import EVENTS, STUDENTS
from stillhouse.sdk.kafka import confluent_producer_args, topic_name
from stillhouse.sdk.store import Store
from tests.serving.gateway.world import ASK, Process, canary, config_of
from tests.support import ingest
from tests.support.brokers import RunningBroker, start_embedded
from tests.support.waiting import until, until_async


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    found = start_embedded(tmp_path_factory.mktemp("broker") / "b")
    yield found
    found.stop()


@pytest.fixture(scope="module")
def teacher() -> Iterator[str]:
    command = [sys.executable, "-m", "stillhouse.examples.order_desk.teacher", "--latency-ms", "5"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield json.loads(process.stdout.readline())["url"]
    process.terminate()
    process.wait(20)
    process.stdout.close()


@pytest.fixture
def topics(broker: RunningBroker) -> ingest.Topics:
    return ingest.Topics(broker.bootstrap)


def _config(state: Path, url: str, topics: ingest.Topics, **more: str) -> Any:
    more = {"teacher_model": f'"{STAND_IN}"', "teacher_timeout_s": "20.0"} | more
    return config_of(state, url, more, kafka=f'prefix = "{topics.kafka.prefix}"')


async def _ask(session: aiohttp.ClientSession, url: str, messages: Any, **headers: str) -> tuple[int, Any, str]:
    async with session.post(f"{url}/v1/chat/completions", json={"model": "desk", "messages": messages}, headers=headers) as response:
        return response.status, await response.json(), response.headers.get("x-stillhouse-trajectory", "")


def _events(topics: ingest.Topics) -> list[AgentEvent]:
    return [codec.decode(message.value(), AgentEvent) for message in topics.read(EVENTS)]


async def test_traffic_becomes_rows(tmp_path: Path, teacher: str, topics: ingest.Topics) -> None:
    with Process(_config(tmp_path, teacher, topics), topics.kafka.bootstrap_servers) as gateway:
        async with aiohttp.ClientSession() as session:
            runs = [(await _ask(session, gateway.ready["url"], ASK))[2] for _ in range(5)]
            outcome = {"trajectory": runs[0], "outcome": "success", "source": "verifier"}
            async with session.post(f"{gateway.ready['url']}/v1/stillhouse/outcomes", json=outcome) as response:
                assert response.status == 201
        assert gateway.stop() == 0
    store = Store.open(tmp_path / "lance")
    async with ingest.running(topics, store):
        await until_async(lambda: len(store.trajectories()) == 5 and topics.unread() == 0, "five rows")
    rows = {row["trajectory_id"]: row for row in store.trajectories()}
    assert set(rows) == set(runs) and rows[runs[0]]["outcome"] == "success"
    assert all(row["cost_micro_usd"] > 0 and row["assignment"]["arm"] == "teacher" for row in rows.values())


async def test_kill_9_at_any_time_loses_no_reply_no_arm_and_no_cent(tmp_path: Path, teacher: str, topics: ingest.Topics) -> None:
    config = _config(tmp_path, teacher, topics)
    gateway = Process(config, topics.kafka.bootstrap_servers)
    answered: dict[str, Any] = {}
    async with aiohttp.ClientSession() as session:
        for round_number in range(3):
            url = gateway.ready["url"]
            asking = [asyncio.create_task(_ask(session, url, _about(round_number * 100 + n))) for n in range(30)]
            done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            gateway.kill()  # some are answered, some are not
            for n, result in enumerate(await asyncio.gather(*asking, return_exceptions=True)):
                if not isinstance(result, BaseException):
                    answered[result[2]] = [*_about(round_number * 100 + n), result[1]["choices"][0]["message"]]
            assert done
            gateway = Process(config, topics.kafka.bootstrap_servers)
            assert len(answered) > round_number
        # The conversations are found again by their prefix, in the arm they had.
        for run, messages in answered.items():
            following = [*messages, {"role": "user", "content": "Thanks."}]
            assert (await _ask(session, gateway.ready["url"], following))[2] == run
        async with session.get(f"{gateway.ready['admin']}/v1/routes") as response:
            ledger = (await response.json())["routes"]["desk"]["ledger"]
    assert gateway.stop() == 0
    rows = {key: fold(events) for key, events in _by_key(_events(topics)).items()}
    assert {f"default/{run}" for run in answered} <= set(rows)
    assert not any(row.headless for row in rows.values())
    spent = sum(step.cost_micro_usd or 0 for row in rows.values() for step in row.steps)
    assert sum(line["cost_micro_usd"] for line in ledger) == spent


def _about(order: int) -> Any:
    return [ASK[0], {"role": "user", "content": f"Where is order {order}?"}]


def _by_key(events: list[AgentEvent]) -> dict[str, list[AgentEvent]]:
    found: dict[str, list[AgentEvent]] = {}
    for event in events:
        found.setdefault(event.key, []).append(event)
    return found


async def test_the_topic_is_followed_and_assignments_survive_kill_9(tmp_path: Path, teacher: str, topics: ingest.Topics) -> None:
    config = _config(tmp_path, teacher, topics)
    producer: Any = Producer(confluent_producer_args(topics.kafka))

    def publish(record: Any) -> None:
        producer.produce(topic_name(topics.kafka, STUDENTS), codec.encode(record))
        assert producer.flush(30) == 0

    publish(canary("s-1", 0.5))
    gateway = Process(config, topics.kafka.bootstrap_servers)
    names = [f"t{n}" for n in range(12)]
    async with aiohttp.ClientSession() as session:
        await _offset(session, gateway, 0)
        for name in names:
            await _ask(session, gateway.ready["url"], ASK, **{"x-stillhouse-trajectory": name})
        gateway.kill()
        publish(canary("s-1", 0.9, 0))
        gateway = Process(config, topics.kafka.bootstrap_servers)
        await _offset(session, gateway, 1)
        for name in names:
            await _ask(session, gateway.ready["url"], ASK, **{"x-stillhouse-trajectory": name})
    assert gateway.stop() == 0
    arms: dict[str, set[Any]] = {}
    for event in _events(topics):
        assert event.assignment is not None and isinstance(event.body, StepTaken)
        arms.setdefault(event.trajectory_id, set()).add((event.assignment.arm, event.assignment.epoch))
    assert all(len(found) == 1 for found in arms.values()) and {epoch for found in arms.values() for _, epoch in found} == {0}
    assert {arm for found in arms.values() for arm, _ in found} == {"canary", "teacher"}


async def _offset(session: aiohttp.ClientSession, gateway: Process, wanted: int) -> None:
    async with asyncio.timeout(30):
        while True:
            async with session.get(f"{gateway.ready['admin']}/v1/routes") as response:
                if (await response.json())["routes"]["desk"]["offset"] == wanted:
                    return


async def test_the_teacher_serves_without_a_broker_and_the_events_wait(tmp_path: Path, teacher: str) -> None:
    broker = start_embedded(tmp_path / "b")
    topics = ingest.Topics(broker.bootstrap)
    broker.stop()
    with Process(_config(tmp_path, teacher, topics), broker.bootstrap) as gateway:
        async with aiohttp.ClientSession() as session:
            assert (await _ask(session, gateway.ready["url"], ASK))[0] == 200
            async with session.get(f"{gateway.ready['admin']}/readyz") as response:
                assert response.status == 503 and (await response.json())["waits"]
            broker.restart()
            await until_async(lambda: len(topics.read(EVENTS)) == 2, "both events")
        assert gateway.stop() == 0
    broker.stop()


def test_a_second_gateway_on_the_same_state_is_refused(tmp_path: Path, teacher: str, topics: ingest.Topics) -> None:
    config = _config(tmp_path, teacher, topics)
    with Process(config, topics.kafka.bootstrap_servers), pytest.raises(AssertionError, match="One gateway has the state folder"):
        Process(config, topics.kafka.bootstrap_servers)


async def test_sigterm_lets_open_requests_end(tmp_path: Path, topics: ingest.Topics) -> None:
    command = [sys.executable, "-m", "stillhouse.examples.order_desk.teacher", "--latency-ms", "800"]
    slow = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert slow.stdout is not None
    url = json.loads(slow.stdout.readline())["url"]
    with Process(_config(tmp_path, url, topics), topics.kafka.bootstrap_servers) as gateway:
        async with aiohttp.ClientSession() as session:
            asking = asyncio.create_task(_ask(session, gateway.ready["url"], ASK))
            async with asyncio.timeout(20):
                while "stillhouse_gateway_open_requests 1.0" not in await _text(session, f"{gateway.ready['admin']}/metrics"):
                    pass
            gateway.process.terminate()
            assert (await asking)[0] == 200
        until(lambda: gateway.process.poll() is not None, "the gateway ends")
        assert gateway.process.returncode == 0
    slow.terminate()
    slow.wait(20)
    slow.stdout.close()


async def _text(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(url) as response:
        return await response.text()
