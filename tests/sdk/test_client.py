"""An agent's events, from the handle to the topic."""

import asyncio
import logging
import threading
import uuid
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its stubs leave these out
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

import stillhouse.sdk
from stillhouse.schemas.events import (
    AgentEvent,
    ClientReport,
    FeedbackGiven,
    FeedbackSource,
    Outcome,
    Policy,
    PolicyRole,
    StepTaken,
    Task,
    TrajectoryEnded,
    TrajectoryStarted,
    Usage,
)
from stillhouse.schemas.keys import partition_of
from stillhouse.schemas.topics import EVENTS, SCHEMAS
from stillhouse.sdk import Client, KafkaSettings, Limits, Refusal, ToolCall
from stillhouse.sdk.spool_folder import waiting
from tests.support.agents import NO_BROKER, arrived, make_topics, until, values

TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]


def bodies(events: list[AgentEvent]) -> list[object]:
    return [event.body for event in sorted(events, key=lambda e: (e.occurred_at, e.event_id))]


def test_a_run_arrives_as_its_events(kafka: KafkaSettings, spool: Path) -> None:
    policy = Policy(role=PolicyRole.TEACHER, model="big", version="1")
    client = Client(settings=kafka, tenant="acme", agent="desk/1", spool=spool, policy=policy)
    with client.trajectory(task={"id": 7, "instruction": "Find it"}, tools=TOOLS, system_prompt="Help.", family="find", subject="s1") as t:
        t.step(ToolCall(id="c1", name="find", arguments={"q": "lamp"}), "found", usage={"prompt_tokens": 5}, latency_ms=3)
        t.step("Here it is.", state="Where is it?", error=ValueError("odd"))
        t.end("success", reward=0.5, verifier="unit")
    client.feedback(t.id, outcome=False, source="user")
    assert client.flush(20) == 0
    report = client.close()
    assert (report.sent, report.left, report.rejected, report.complete) == (5, 0, {}, True)
    events = arrived(kafka)
    assert (
        {e.key for e in events} == {f"acme/{t.id}"} and {e.agent for e in events} == {"desk/1"} and {e.policy for e in events} == {policy}
    )
    assert all(uuid.UUID(e.event_id).version == 7 for e in events) and len({e.event_id for e in events}) == 5
    start, first, second, end, feedback = bodies(events)
    assert isinstance(start, TrajectoryStarted) and start.task == Task(id="7", family="find", instruction="Find it")
    assert (start.tools, start.system_prompt, start.subject) == (tuple(TOOLS), "Help.", "s1")
    assert isinstance(first, StepTaken) and first.index == 0 and first.usage == Usage(input_tokens=5)
    assert first.observation[0].tool_call_id == "c1" and first.action.tool_calls[0].arguments == {"q": "lamp"}
    assert isinstance(second, StepTaken) and second.state[0].role == "user" and second.error == "ValueError: odd"
    assert end == TrajectoryEnded(steps=2, outcome=Outcome.SUCCESS, reward=0.5, verifier="unit")
    assert feedback == FeedbackGiven(source=FeedbackSource.USER, outcome=Outcome.FAILURE)
    assert not list(spool.glob("process-*")), "a spool with nothing in it is removed"


def test_records_lie_where_every_client_looks_for_them(embedded_kafka: KafkaSettings, spool: Path) -> None:
    with Client(settings=embedded_kafka, spool=spool) as client:
        ids = [client.trajectory(task=str(n)).id for n in range(20)]
    assert len(arrived(embedded_kafka)) == 20
    topic = f"{embedded_kafka.prefix}.{EVENTS}"
    consumer = Consumer({"bootstrap.servers": embedded_kafka.bootstrap_servers, "group.id": "x"})
    consumer.assign([TopicPartition(topic, p, 0) for p in range(3)])
    seen: dict[str, int] = {}

    def all_seen() -> bool:
        seen.update({(m.key() or b"").decode(): m.partition() or 0 for m in consumer.consume(20, 0.2)})
        return len(seen) == 20

    until(all_seen, "20 records")
    consumer.close()
    assert seen == {f"default/{i}": partition_of(f"default/{i}", 3) for i in ids}


def test_the_schema_is_announced_once_for_a_spool(embedded_kafka: KafkaSettings, spool: Path) -> None:
    for _ in range(2):
        with Client(settings=embedded_kafka, spool=spool):
            until(lambda: list(spool.glob("schema-*")), "the announcement")
    assert len(values(embedded_kafka, SCHEMAS)) == 1


async def test_async_runs_share_a_client(embedded_kafka: KafkaSettings, spool: Path) -> None:
    async def run(client: Client, number: int) -> None:
        async with client.trajectory(task=f"task {number}") as t:
            t.step("one")
            await asyncio.sleep(0)
            t.step("two")
            t.end(True)

    async with Client(settings=embedded_kafka, spool=spool) as client:
        await asyncio.gather(*(run(client, n) for n in range(5)))
    ended = [e.body for e in arrived(embedded_kafka) if isinstance(e.body, TrajectoryEnded)]
    assert ended == [TrajectoryEnded(steps=2, outcome=Outcome.SUCCESS)] * 5


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), asyncio.CancelledError()])
def test_an_exception_aborts_the_run_and_goes_on(error: BaseException, embedded_kafka: KafkaSettings, spool: Path) -> None:
    with Client(settings=embedded_kafka, spool=spool) as client:
        with pytest.raises(type(error)), client.trajectory(task="x") as t:
            t.step("one")
            raise error
        with client.trajectory(task="y"):
            pass
        with pytest.raises(ValueError), client.trajectory(task="z") as t:
            t.end("failure")
            raise ValueError("after the end")
    outcomes = [b.outcome for b in bodies(arrived(embedded_kafka)) if isinstance(b, TrajectoryEnded)]
    assert outcomes == [Outcome.ABORTED, Outcome.UNKNOWN, Outcome.FAILURE]


def test_feedback_may_come_before_the_run_and_be_taken_back(embedded_kafka: KafkaSettings, spool: Path) -> None:
    with Client(settings=embedded_kafka, spool=spool) as client:
        first = client.feedback("run-1", reward=1, source=FeedbackSource.JUDGE, source_version="2", step=3, label="fine")
        client.trajectory(task="x", trajectory_id="run-1").end("success")
        client.feedback("run-1", source="judge", revises=first, retracted=True)
    given = [b for b in bodies(arrived(embedded_kafka)) if isinstance(b, FeedbackGiven)]
    assert given == [
        FeedbackGiven(source=FeedbackSource.JUDGE, source_version="2", step=3, reward=1.0, label="fine"),
        FeedbackGiven(source=FeedbackSource.JUDGE, revises=first, retracted=True),
    ]


def test_with_the_gateways_headers_the_gateway_sends_the_steps(embedded_kafka: KafkaSettings, spool: Path) -> None:
    with (
        Client(settings=embedded_kafka, spool=spool) as client,
        client.trajectory(task=Task(id="ü 1%", family="f"), trajectory_id="r") as t,
    ):
        assert t.openai_headers() == {"x-stillhouse-trajectory": "r", "x-stillhouse-task": "%C3%BC%201%25", "x-stillhouse-family": "f"}
        assert t.step("not ours to send") is None
        t.end("success")
    start, end, report = bodies(arrived(embedded_kafka))
    assert isinstance(start, TrajectoryStarted)
    assert end == TrajectoryEnded(steps=None, outcome=Outcome.SUCCESS)
    assert report == ClientReport(dropped={"gateway_steps": 1})
    with Client(NO_BROKER, spool=spool) as other:
        assert list(other.trajectory(task="text", family="f").openai_headers()) == ["x-stillhouse-trajectory", "x-stillhouse-family"]
        other.close(0)


class Unfit:
    def __repr__(self) -> str:
        raise RuntimeError("even this")

    @property
    def model_dump(self) -> object:
        raise RuntimeError("the secret is hunter2")


def test_whatever_is_passed_the_agent_does_not_notice(embedded_kafka: KafkaSettings, spool: Path, caplog: pytest.LogCaptureFixture) -> None:
    circle: list[object] = []
    circle.append(circle)
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    client = Client(settings=embedded_kafka, spool=spool)
    with caplog.at_level(logging.DEBUG):
        t = client.trajectory(task="x")
        unfit: list[object] = [Unfit(), object(), circle, deep, open]
        at_once = [t.step(bad) for bad in unfit]
        wrong: list[object] = [42, None, {"role": "nobody"}, {"role": "user", "content": "not an action"}, []]
        later = [t.step(bad) for bad in wrong]
        later += [t.step("x", usage="many"), t.step("x", latency_ms="slow"), t.end(outcome="splendid"), client.feedback("r", source="me")]  # type: ignore[arg-type]
        assert client.emit("no event") is True  # type: ignore[arg-type]  # found out later
        assert client.emit(object()) is False  # type: ignore[arg-type]
        t.step("fine", "lone \ud800 surrogate", logprobs={"a": float("nan")})
        client.flush(20)
    assert at_once == [None] * 5 and all(later)
    assert client.stats.rejected == {Refusal.BAD_INPUT: 5 + len(later) + 2}
    assert "hunter2" not in caplog.text
    assert caplog.text.count("further ones are only counted") == 1
    client.close()
    kept = arrived(embedded_kafka)
    (step,) = [e.body for e in kept if isinstance(e.body, StepTaken)]
    assert step.observation[0].content == "lone \ufffd surrogate"
    assert [e.body for e in kept if isinstance(e.body, ClientReport)] == [ClientReport(dropped={"bad_input": 5 + len(later) + 2})]


def test_the_agents_own_objects_may_change_afterwards(embedded_kafka: KafkaSettings, spool: Path) -> None:
    message = {"role": "assistant", "content": "before"}
    with Client(settings=embedded_kafka, spool=spool) as client:
        t = client.trajectory(task="x")
        t.step(message)
        message["content"] = "after"
    (step,) = [e.body for e in arrived(embedded_kafka) if isinstance(e.body, StepTaken)]
    assert step.action.content == "before"


def test_a_full_queue_refuses_counts_and_reports(embedded_kafka: KafkaSettings, spool: Path) -> None:
    client = Client(settings=embedded_kafka, spool=spool, limits=Limits(queue_events=10, queue_bytes=1_000_000))
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        go.wait(30)

    client._handover.call(hold)
    assert held.wait(30)
    ids = [client.feedback("r", reward=n) for n in range(15)]
    assert client.feedback("r", label="x" * 2_000_000) is None
    go.set()
    assert all(ids[:10]) and ids[10:] == [None] * 5
    assert client.close().rejected == {"queue_full": 6}
    events = arrived(embedded_kafka)
    assert {e.event_id for e in events if isinstance(e.body, FeedbackGiven)} == set(ids[:10])
    assert [e.body for e in events if isinstance(e.body, ClientReport)] == [ClientReport(dropped={"queue_full": 6})]


def test_put_waits_for_room_instead(embedded_kafka: KafkaSettings, spool: Path) -> None:
    events = [
        AgentEvent(event_id=f"e{n}", tenant="other", trajectory_id="r", occurred_at=n, body=TrajectoryEnded(steps=n)) for n in range(200)
    ]
    with Client(settings=embedded_kafka, spool=spool, limits=Limits(queue_events=7), way_in="import") as client:
        assert all(client.put(event) for event in events)
    assert sorted(arrived(embedded_kafka), key=lambda e: e.occurred_at) == events
    assert client.put(events[0]) is False and client.stats.rejected == {"closed": 1}


def test_an_event_beyond_a_records_size_is_kept_for_a_person(embedded_kafka: KafkaSettings, spool: Path) -> None:
    client = Client(settings=embedded_kafka, spool=spool)
    t = client.trajectory(task="x")
    big = t.step("x" * 5_000_000 + " sk-proj-abcdefghij1234567890ABCD")
    t.step("y" * 1_040_000)
    assert client.close().rejected == {"too_large": 1}
    (file,) = (spool / "rejected").iterdir()
    assert file.stem == big and b'"too_large"' in file.read_bytes() and b"sk-proj" not in file.read_bytes()
    events = arrived(embedded_kafka)
    assert [e.body for e in events if isinstance(e.body, ClientReport)] == [ClientReport(dropped={"too_large": 1})]
    assert sum(isinstance(e.body, StepTaken) for e in events) == 1


def test_what_the_broker_never_takes_is_kept_for_a_person(kafka: KafkaSettings, spool: Path) -> None:
    entry = ConfigEntry("max.message.bytes", "2000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, f"{kafka.prefix}.{EVENTS}", incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})  # its futures fail when nobody holds it
    admin.incremental_alter_configs([resource])[resource].result(30)
    client = Client(settings=kafka, spool=spool)
    large: list[str | None] = []

    def refused() -> bool:  # Apache Kafka answers before the new limit holds
        large.append(client.feedback("r", label="x" * 3000))
        assert client.flush(20) == 0
        return bool(client.stats.rejected)

    until(refused, "the new limit")
    taken = client.feedback("r", label="short")
    assert client.close().rejected == {"broker_refused": 1}
    assert [f.stem for f in (spool / "rejected").iterdir()] == large[-1:]
    ids = {e.event_id for e in arrived(kafka)}
    assert taken in ids and ids >= set(large[:-1]) and large[-1] not in ids
    assert waiting(spool) == 0


def test_a_topic_that_is_not_there_yet_loses_nothing(embedded_kafka: KafkaSettings, spool: Path) -> None:
    settings = KafkaSettings(bootstrap_servers=embedded_kafka.bootstrap_servers, prefix=f"{embedded_kafka.prefix}-late")
    client = Client(settings=settings, spool=spool)
    sent = client.feedback("r", reward=1)
    assert client.flush(1) == 1
    make_topics(settings.bootstrap_servers, settings.prefix)
    assert client.flush(30) == 0
    client.close()
    assert [e.event_id for e in arrived(settings)] == [sent]


def test_after_close_events_are_refused(spool: Path) -> None:
    client = Client(NO_BROKER, spool=spool)
    report = client.close(0)
    assert client.close() is report and client.flush() == 0
    assert client.feedback("r") is None and client.trajectory(task="x").end() is None
    assert client.stats.rejected == {"closed": 3}


def test_a_second_end_is_refused(spool: Path) -> None:
    client = Client(NO_BROKER, spool=spool)
    with client.trajectory(task="x") as t:
        assert t.end("success") and t.end("failure") is None
    client.close(0)
    assert client.stats.rejected == {"after_end": 1}


def test_the_public_surface_is_pinned() -> None:
    assert sorted(stillhouse.sdk.__all__) == [
        "AgentEvent", "Client", "ClientStats", "CloseReport", "FeedbackSource", "KafkaSettings", "Limits", "Message", "Outcome", "Policy",
        "PolicyRole", "Redacted", "RedactionError", "Redactor", "Refusal", "Rule", "RunnerTask", "Task", "ToolCall", "ToolResult",
        "Trajectory", "Usage",
    ]  # fmt: skip
    assert all(hasattr(stillhouse.sdk, name) for name in stillhouse.sdk.__all__)
