"""What an engine refuses is rolled back for everybody by the gateway that saw it: with a rival, a dead broker, and a champion."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from stillhouse.schemas import codec
from stillhouse.schemas.errors import UnreachableError
from stillhouse.schemas.facts import CanaryVerdict, StudentStage, StudentState
from stillhouse.schemas.topics import VERDICTS
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.serving.canary.follow import Tail
from stillhouse.serving.canary.publish import StudentsLog
from stillhouse.serving.gateway.backend import Verdict
from stillhouse.serving.gateway.server import Gateway, Ports
from tests.serving.gateway.world import Events, FakeEngine, Upstream, config_of
from tests.support.agents import make_topics
from tests.support.brokers import RunningBroker, start_embedded
from tests.support.waiting import PAUSE_S, until_async

STUDENT = "s-1"
FIRST = StudentState(student=STUDENT, stage=StudentStage.CANARY, route="desk", share=0.5)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    found = start_embedded(tmp_path / "broker")
    yield found
    found.stop()


@pytest.fixture
def kafka(broker: RunningBroker) -> KafkaSettings:
    return make_topics(broker.bootstrap, prefix="refusals")


@pytest.fixture
async def students(kafka: KafkaSettings) -> AsyncIterator[StudentsLog]:
    log = StudentsLog(kafka)
    await log.start()
    assert await log.publish(FIRST)
    yield log
    await log.stop()


class Start:
    """Starts gateways that follow the topic, each with an engine and a folder of its own."""

    def __init__(self, folder: Path, kafka: KafkaSettings, upstream: Upstream, stack: AsyncExitStack) -> None:
        self._folder, self._kafka, self._upstream, self._stack, self._count = folder, kafka, upstream, stack, 0

    async def __call__(self, engine: FakeEngine) -> Gateway:
        self._count += 1
        where = f'bootstrap_servers = "{self._kafka.bootstrap_servers}"\nprefix = "{self._kafka.prefix}"'
        config = config_of(self._folder / str(self._count), self._upstream.url, kafka=where)
        gateway = Gateway(config, {"desk": engine}, sink=Events())
        await gateway.start(Ports())
        self._stack.push_async_callback(gateway.stop)
        return gateway


@pytest.fixture
async def start(tmp_path: Path, kafka: KafkaSettings, upstream: Upstream) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:
        yield Start(tmp_path, kafka, upstream, stack)


async def ended(log: StudentsLog) -> bool:
    await log.catch_up()
    return log.students.states.of("desk").terminal(STUDENT)


async def settled_for(seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), seconds)


async def rolled_back(log: StudentsLog) -> None:
    """Return when the log says so."""
    async with asyncio.timeout(60):
        while True:
            with suppress(UnreachableError):  # the broker may be on its way back
                if await ended(log):
                    return
            await settled_for(PAUSE_S)


async def verdicts(kafka: KafkaSettings) -> list[CanaryVerdict]:
    tail, found = Tail(kafka, VERDICTS), list[CanaryVerdict]()
    await tail.start()
    await tail.catch_up(lambda record: found.append(codec.decode(record.value, CanaryVerdict)))
    await tail.stop()
    return found


async def test_of_two_gateways_that_refuse_it_one_is_followed(start: Start, students: StudentsLog, kafka: KafkaSettings) -> None:
    engines = [FakeEngine(), FakeEngine()]
    gateways = [await start(engine) for engine in engines]
    await until_async(lambda: all(engine.ready(STUDENT) for engine in engines), "both serve it")
    for engine in engines:
        engine.verdict = Verdict.REFUSED
    await rolled_back(students)
    await until_async(lambda: not any(engine.loaded for engine in engines), "both have let it go")
    decisions = [d for d in students.students.decisions if d.record.stage is StudentStage.ROLLED_BACK]
    assert [d.accepted for d in decisions].count(True) == 1
    accepted = next(d.record for d in decisions if d.accepted)
    assert accepted.reason == "rollback: attestation_failed" and accepted.decided_by.startswith("gateway/")
    said = await verdicts(kafka)
    numbers = json.loads(said[0].numbers)
    assert (said[0].verdict, numbers["reason"], numbers["prev"], numbers["distances"]) == (
        "rollback", "attestation_failed", 0, {"student": 0.7}
    )  # fmt: skip
    rollbacks = sum(
        gateway.desk.instruments.registry.get_sample_value(
            "stillhouse_gateway_rollbacks_total", {"route": "desk", "student": STUDENT, "reason": "attestation_failed"}
        )
        or 0
        for gateway in gateways
    )
    assert rollbacks == 1


async def test_without_a_broker_its_traffic_stops_and_the_log_is_told_later(
    start: Start, students: StudentsLog, broker: RunningBroker
) -> None:
    engine = FakeEngine()
    gateway = await start(engine)
    await until_async(lambda: engine.ready(STUDENT), "it serves")
    broker.kill()
    engine.verdict = Verdict.REFUSED
    state = gateway.desk.state(gateway.desk.routes["desk"])
    assert state.canary == STUDENT and not engine.ready(STUDENT)
    await until_async(lambda: bool(gateway.follower.failed), "the broker's end is seen", 30)
    broker.restart()
    await rolled_back(students)


async def test_a_later_look_repeats_what_another_decision_overtook(start: Start, students: StudentsLog) -> None:
    """The controller advances it between the gateway's look and its decision: the rollback is decided again on the new state."""
    engine = FakeEngine()
    gateway = await start(engine)
    await until_async(lambda: engine.ready(STUDENT), "it serves")
    raced = asyncio.Event()
    publish = StudentsLog.publish

    async def late(self: StudentsLog, record: StudentState) -> bool:
        if self is not students and not raced.is_set():
            raced.set()
            assert await publish(students, StudentState(student=STUDENT, stage=StudentStage.CANARY, route="desk", share=0.6))
        return await publish(self, record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StudentsLog, "publish", late)
        engine.verdict = Verdict.REFUSED
        await rolled_back(students)
    accepted = [d.record.stage.value for d in students.students.decisions if d.accepted]
    assert raced.is_set() and accepted == ["canary", "canary", "rolled_back"]
    assert gateway.follower.failed == ""


async def test_a_champion_is_not_rolled_back_by_one_gateway(start: Start, students: StudentsLog) -> None:
    """Its engine may be to blame: here the teacher answers, and an alert says so."""
    assert await students.publish(StudentState(student=STUDENT, stage=StudentStage.CHAMPION, route="desk"))
    engine = FakeEngine()
    gateway = await start(engine)
    await until_async(lambda: engine.ready(STUDENT), "it serves")
    engine.verdict = Verdict.REFUSED
    registry = gateway.desk.instruments.registry
    labels = {"route": "desk", "student": STUDENT}
    await until_async(lambda: registry.get_sample_value("stillhouse_gateway_student_refused", labels) == 1, "it is shown")
    assert not await ended(students)
