"""A canary whose engine serves something else: the gateway stops it, the log says so, and the controller never takes it up again."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from stillhouse.schemas import codec
from stillhouse.schemas.facts import CanaryVerdict, StudentStage
from stillhouse.schemas.route_state import RouteState
from stillhouse.schemas.topics import VERDICTS
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.serving.canary.follow import Tail
from stillhouse.serving.canary.shell import Controller
from stillhouse.serving.gateway.engine import HttpEngine
from stillhouse.serving.gateway.server import Gateway, Ports
from tests.serving.canary_process.world import ROUTE, SETTINGS, TERMS, World, registered
from tests.serving.engine.test_contract import Clock, Spoil, stale, swapped, truncated
from tests.serving.gateway.world import Events, Upstream, config_of
from tests.support.agents import make_topics
from tests.support.brokers import start_embedded
from tests.support.engines import SYSTEM, Family, Running, copy_of, student_server
from tests.support.waiting import until_async

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    broker = start_embedded(tmp_path_factory.mktemp("broker") / "log")
    yield broker.bootstrap
    broker.stop()


@pytest.fixture(scope="module")
def server(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with student_server(family.base, tmp_path_factory.mktemp("engine") / "log") as found:
        yield found


@pytest.fixture
def kafka(bootstrap: str, request: pytest.FixtureRequest) -> KafkaSettings:
    return make_topics(bootstrap, prefix=f"t{abs(hash(request.node.name))}")


@pytest.fixture
async def controller(kafka: KafkaSettings, family: Family) -> AsyncIterator[Controller]:
    """With enough history, and the child on trial."""
    world = World(kafka, 3)
    found = Controller(kafka, SETTINGS, [TERMS], "canary/a", world.clock)
    await found.start()
    world.traffic(RouteState(route=ROUTE), 60)
    world.ripen()
    await found.log.publish(registered(family.child))
    for _ in range(3):  # reads the watermark, releases, starts
        await found.look()
    assert found.log.students.states.of(ROUTE).canary == family.child
    yield found
    await found.stop()


class Served:
    """A gateway that follows the topic, with the engine and its clock."""

    def __init__(self, gateway: Gateway, url: str, engine: HttpEngine, clock: Clock) -> None:
        self.gateway, self.url, self.engine, self.clock = gateway, url, engine, clock

    async def variants(self, count: int = 16) -> set[str]:
        """Who answers so many new conversations."""
        found = set()
        async with aiohttp.ClientSession() as session:
            for n in range(count):
                messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"Where is {20 + n % 12}?"}]
                async with session.post(f"{self.url}/v1/chat/completions", json={"model": ROUTE, "messages": messages}) as answer:
                    assert answer.status == 200
                    found.add(answer.headers["x-stillhouse-variant"])
        return found


@pytest.fixture
async def serve(tmp_path: Path, kafka: KafkaSettings, server: Running) -> AsyncIterator[Any]:
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(Upstream().running())
        where = f'bootstrap_servers = "{kafka.bootstrap_servers}"\nprefix = "{kafka.prefix}"'
        config = config_of(tmp_path, upstream.url, {"student_timeout_s": "20.0"}, kafka=where)

        async def start(students: Path) -> Served:
            clock = Clock()
            engine = HttpEngine(server.url, students, clock=clock, watch_every_s=0.2)
            gateway = Gateway(config, {ROUTE: engine}, sink=Events())
            url, _ = await gateway.start(Ports())
            stack.push_async_callback(gateway.stop)
            return Served(gateway, url, engine, clock)

        yield start


async def verdicts(kafka: KafkaSettings) -> list[CanaryVerdict]:
    tail, found = Tail(kafka, VERDICTS), list[CanaryVerdict]()
    await tail.start()
    await tail.catch_up(lambda record: found.append(codec.decode(record.value, CanaryVerdict)))
    await tail.stop()
    return found


async def _rolled_back(served: Served, controller: Controller, kafka: KafkaSettings, student: str) -> dict[str, Any]:
    """Once gateway and controller have seen it; gives the verdict's numbers."""
    state = served.gateway.desk.state
    await until_async(lambda: state(served.gateway.desk.routes[ROUTE]).canary is None, "the gateway follows the rollback", 120)
    assert await served.variants() == {"teacher"}
    for _ in range(3):
        await controller.look()
    after = controller.log.students.states.of(ROUTE)
    assert (after.canary, after.stages[student]) == (None, StudentStage.ROLLED_BACK)
    assert controller.waits[ROUTE] == "no_student"
    (said,) = [v for v in await verdicts(kafka) if v.verdict == "rollback"]
    numbers: dict[str, Any] = json.loads(said.numbers)
    assert (said.student, numbers["reason"]) == (student, "attestation_failed")
    return numbers


@pytest.mark.parametrize("spoil", [swapped, truncated, stale])
async def test_what_an_engine_serves_in_its_place_ends_the_canary(
    spoil: Spoil, controller: Controller, serve: Any, server: Running, family: Family, kafka: KafkaSettings, tmp_path: Path
) -> None:
    served: Served = await serve(family.students)
    await until_async(lambda: served.engine.ready(family.child), "it is attested", 120)
    assert await served.variants() == {"teacher", family.child}
    server.replace(family.child, spoil(family, tmp_path / "other"))
    served.clock.now += 3600  # the hourly attestation is due
    await until_async(lambda: not served.engine.ready(family.child), "it is refused", 120)
    assert await served.variants() == {"teacher"}  # before anybody else has heard of it
    numbers = await _rolled_back(served, controller, kafka, family.child)
    assert numbers["distances"]["student"] >= 0.1 and "nats a token" in numbers["attestation"]


async def test_a_file_that_changed_after_the_registration_ends_it_before_a_request(
    controller: Controller, serve: Any, family: Family, kafka: KafkaSettings, tmp_path: Path
) -> None:
    students = tmp_path / "students"
    view = copy_of(family.folder(family.child), students / family.child) / "render.json"
    view.write_bytes(view.read_bytes() + b" ")
    served: Served = await serve(students)
    numbers = await _rolled_back(served, controller, kafka, family.child)
    assert numbers["attestation"].startswith("not as it was registered")
