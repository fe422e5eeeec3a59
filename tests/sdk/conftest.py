"""A cluster for the SDK's tests: the embedded broker, and Apache Kafka where it can be started."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from stillhouse.sdk.kafka import KafkaSettings
from tests.support.agents import make_topics
from tests.support.brokers import RunningBroker, start_embedded


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    broker = start_embedded(tmp_path_factory.mktemp("broker") / "log")
    yield broker
    broker.stop()


@pytest.fixture
def embedded_kafka(embedded: RunningBroker) -> KafkaSettings:
    """Topics of the test's own on the embedded broker."""
    return make_topics(embedded.bootstrap, prefix=f"t{uuid.uuid4().hex[:8]}")


@pytest.fixture(params=["embedded", pytest.param("apache", marks=pytest.mark.kafka)])
def kafka(request: pytest.FixtureRequest) -> KafkaSettings:
    """Topics of the test's own, on each broker in turn."""
    if request.param == "embedded":
        settings: KafkaSettings = request.getfixturevalue("embedded_kafka")
        return settings
    return make_topics(request.getfixturevalue("real_kafka"), prefix=f"t{uuid.uuid4().hex[:8]}")


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"
