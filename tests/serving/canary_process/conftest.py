"""A broker of the tests' own, and a controller on it that is looked with by hand."""

import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest

from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.serving.canary.settings import ControllerSettings
from stillhouse.serving.canary.shell import Controller
from tests.serving.canary_process.world import SETTINGS, TERMS, World
from tests.support.agents import make_topics
from tests.support.brokers import RunningBroker, start_embedded

PARTITIONS = 3


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    running = start_embedded(tmp_path_factory.mktemp("broker") / "log")
    yield running
    running.stop()


@pytest.fixture
def kafka(broker: RunningBroker) -> KafkaSettings:
    """Topics of the test's own."""
    return make_topics(broker.bootstrap, prefix=f"t{uuid.uuid4().hex[:8]}")


@pytest.fixture
def world(kafka: KafkaSettings) -> World:
    return World(kafka, PARTITIONS)


class AsyncStart:
    """Starts controllers, and stops them at the end of the test."""

    def __init__(self, kafka: KafkaSettings, world: World, stack: AsyncExitStack) -> None:
        self._kafka, self._world, self._stack = kafka, world, stack

    async def __call__(self, name: str = "canary/a", settings: ControllerSettings = SETTINGS) -> Controller:
        controller = Controller(self._kafka, settings, [TERMS], name, self._world.clock)
        self._stack.push_async_callback(controller.stop)
        await controller.start()
        return controller


@pytest.fixture
async def start(kafka: KafkaSettings, world: World) -> AsyncIterator[AsyncStart]:
    async with AsyncExitStack() as stack:
        yield AsyncStart(kafka, world, stack)
