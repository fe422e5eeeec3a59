"""Brokers for the delivery suites: ours, and Apache Kafka where it can be started."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stillhouse.sdk.store import Store
from tests.support.brokers import start_embedded
from tests.support.ingest import Topics


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """bootstrap_servers of one embedded broker for this folder."""
    broker = start_embedded(tmp_path_factory.mktemp("streams") / "broker")
    yield broker.bootstrap
    broker.stop()


@pytest.fixture(scope="session", params=["embedded", pytest.param("real_kafka", marks=pytest.mark.kafka)])
def bootstrap(request: pytest.FixtureRequest) -> str:
    """A broker: the embedded one, then Apache Kafka."""
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def make_topics(bootstrap: str) -> Callable[..., Topics]:
    """Makes topics under a prefix of their own."""
    return lambda partitions=2: Topics(bootstrap, partitions)


@pytest.fixture
def topics(make_topics: Callable[..., Topics]) -> Topics:
    """Topics of this test, with two partitions."""
    return make_topics()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store.open(tmp_path / "lance")
