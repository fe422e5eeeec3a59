"""What the topics `erasures` and `students` say to a trainer, read from the embedded broker."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # it re-exports without saying so

from stillhouse.schemas.codec import encode
from stillhouse.schemas.errors import PermanentError, UnreachableError
from stillhouse.schemas.facts import Erasure, StudentStage, StudentState
from stillhouse.schemas.topics import ERASURES, STUDENTS
from stillhouse.sdk.kafka import KafkaSettings, apply_topics, confluent_args, confluent_producer_args, topic_name
from stillhouse.trainer import decisions
from stillhouse.trainer.decisions import NOBODY, read_barred, read_erasures
from tests.support.brokers import start_embedded


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    running = start_embedded(tmp_path_factory.mktemp("broker"))
    yield running.bootstrap
    running.stop()


@pytest.fixture
def kafka(broker: str, request: pytest.FixtureRequest) -> KafkaSettings:
    settings = KafkaSettings(bootstrap_servers=broker, prefix=request.node.name.replace("_", "-"), partitions=1)
    apply_topics(settings)
    return settings


def send(kafka: KafkaSettings, topic: str, *values: bytes) -> None:
    producer: Any = Producer(confluent_producer_args(kafka))
    for value in values:
        producer.produce(topic_name(kafka, topic), value, key="k")
    assert producer.flush(30) == 0


def test_erasures_are_read_whole_with_the_offset_of_the_last(kafka: KafkaSettings) -> None:
    assert read_erasures(kafka) == NOBODY
    send(kafka, ERASURES, *(encode(Erasure(tenant="shop", subject=s, requested_at=1)) for s in ("ann", "bob", "ann")))
    found = read_erasures(kafka)
    assert found.offset == 2 and found.subjects == {("shop", "ann"), ("shop", "bob")}
    assert found.covers("shop", "bob") and not found.covers("other", "bob") and not found.covers("shop", None)


def test_an_erasure_that_cannot_be_read_is_not_passed_over(kafka: KafkaSettings) -> None:
    send(kafka, ERASURES, b"\xc3\x01 garbage")
    with pytest.raises(PermanentError):
        read_erasures(kafka)


def test_students_that_were_taken_out_stay_barred(kafka: KafkaSettings) -> None:
    def state(student: str, stage: StudentStage) -> bytes:
        return encode(StudentState(student=student, stage=stage))

    assert read_barred(kafka) == frozenset()
    lives = {
        "student-1": (StudentStage.REGISTERED, StudentStage.CANARY, StudentStage.ROLLED_BACK),
        "student-2": (StudentStage.REGISTERED, StudentStage.CHAMPION),
        "student-3": (StudentStage.CHAMPION, StudentStage.REVOKED),
        "student-4": (StudentStage.REJECTED,),
    }
    send(kafka, STUDENTS, *(state(name, stage) for name, stages in lives.items() for stage in stages))
    assert read_barred(kafka) == {"student-1", "student-3", "student-4"}


def test_erasures_of_every_partition_count_and_students_may_have_only_one(kafka: KafkaSettings, broker: str) -> None:
    admin: Any = AdminClient(confluent_args(kafka))
    made = admin.create_topics([NewTopic(f"wide.{name}", num_partitions=3, replication_factor=1) for name in (ERASURES, STUDENTS)])
    for done in made.values():
        done.result(30)
    wide = KafkaSettings(bootstrap_servers=broker, prefix="wide")
    producer: Any = Producer(confluent_producer_args(wide))
    for partition, subject in enumerate(("ann", "bob", "cyd", "dan")):
        value = encode(Erasure(tenant="shop", subject=subject, requested_at=1))
        producer.produce(topic_name(wide, ERASURES), value, partition=partition % 3)
    assert producer.flush(30) == 0
    found = read_erasures(wide)
    assert found.subjects == {("shop", s) for s in ("ann", "bob", "cyd", "dan")} and found.offset == 3
    with pytest.raises(PermanentError, match="has 3 partitions, not 1"):
        read_barred(wide)


def test_a_missing_topic_and_a_missing_broker_are_named(broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PermanentError, match="no topic never-applied"):
        read_erasures(KafkaSettings(bootstrap_servers=broker, prefix="never-applied"))
    monkeypatch.setattr(decisions, "TIMEOUT_S", 0.5)
    gone = start_embedded(tmp_path / "gone")
    gone.stop()
    with pytest.raises(UnreachableError) as error:
        read_barred(KafkaSettings(bootstrap_servers=gone.bootstrap))
    assert gone.bootstrap in str(error.value)
