"""One embedded broker and one Apache Kafka for all contract tests."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.support.brokers import start_embedded

MakeTopic = Callable[..., str]


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """bootstrap_servers of one embedded broker, started once per test session."""
    broker = start_embedded(Path(tmp_path_factory.mktemp("broker")) / "state", fsync=True)
    yield broker.bootstrap
    assert broker.stop() == 0


@pytest.fixture(scope="session", params=["embedded", pytest.param("real_kafka", marks=pytest.mark.kafka)])
def bootstrap(request: pytest.FixtureRequest) -> str:
    """The broker under contract: ours, then Apache Kafka."""
    return str(request.getfixturevalue(request.param))


@pytest.fixture(scope="session")
def admin(bootstrap: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": bootstrap})


@pytest.fixture
def make_topic(admin: AdminClient) -> MakeTopic:
    """Makes a topic with a name of its own and returns the name."""

    def make(partitions: int = 1, **configs: str) -> str:
        name = f"t-{uuid4().hex[:12]}"
        settings = {key.replace("_", "."): value for key, value in configs.items()}
        admin.create_topics([NewTopic(name, partitions, 1, config=settings)])[name].result(20)
        deadline = time.monotonic() + 20
        while name not in admin.list_topics(timeout=10).topics:  # Kafka says that a topic is made before its broker knows it
            assert time.monotonic() < deadline, f"{name} did not appear"
        return name

    return make
