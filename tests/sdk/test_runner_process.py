"""A runner on a broker: tasks are run once, whenever it is killed, and their runs are the teacher's."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import Producer

from stillhouse.schemas import codec
from stillhouse.schemas.events import AgentEvent, PolicyRole, TrajectoryStarted
from stillhouse.schemas.facts import TeacherTask, TeacherTaskKind
from stillhouse.schemas.teacher_runs import TABLE, task_id
from stillhouse.schemas.topics import EVENTS, TEACHER_TASKS
from stillhouse.sdk.kafka import KafkaSettings, confluent_producer_args, topic_name
from stillhouse.sdk.kafka_read import read_whole
from stillhouse.sdk.store import Store
from tests.support.waiting import until


def publish(kafka: KafkaSettings, numbers: range, family: str = "refund") -> None:
    producer = Producer(confluent_producer_args(kafka))
    for number in numbers:
        key = f"acme/s-{number}"
        found = task_id(TeacherTaskKind.FAILED, key, None, "big")
        task = TeacherTask(
            task_id=found, kind=TeacherTaskKind.FAILED, key=key, tenant="acme", family=family, source_task_id=f"task-{number}"
        )
        producer.produce(topic_name(kafka, TEACHER_TASKS), codec.encode(task), key=found)
    assert producer.flush(30) == 0


@contextmanager
def runner(kafka: KafkaSettings, folder: Path, *, lease: float = 600.0, die: str = "") -> "Iterator[subprocess.Popen[bytes]]":
    child = Path(__file__).with_name("runner_child.py")
    command = [sys.executable, str(child), kafka.bootstrap_servers, kafka.prefix, str(folder), str(lease), die]
    with (folder / "runner.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)


def paid(folder: Path) -> list[str]:
    return sorted((folder / "paid").read_text().split()) if (folder / "paid").exists() else []


def done(folder: Path) -> int:
    return len(Store.open(folder / "lance").rows(TABLE, "state = 'done'"))


@pytest.mark.parametrize("die", ["before", "after"])
def test_killed_in_a_run_it_is_done_by_the_next_and_nothing_finished_is_paid_twice(
    embedded_kafka: KafkaSettings, tmp_path: Path, die: str
) -> None:
    publish(embedded_kafka, range(3))
    publish(embedded_kafka, range(3, 5), "cancel")
    publish(embedded_kafka, range(3))  # said again by a signals that was killed
    with runner(embedded_kafka, tmp_path, lease=3.0, die=die) as process:
        assert process.wait(60) == -9
    with runner(embedded_kafka, tmp_path, lease=3.0):
        until(lambda: done(tmp_path) == 5, "all are done")
    tasks = [f"task-{number}" for number in range(5)]
    # Killed between the run and its result, with nobody that stores events: the run may be bought a second time, as attempt 2.
    assert sorted(set(paid(tmp_path))) == tasks and len(paid(tmp_path)) == (5 if die == "before" else 6)
    finished = paid(tmp_path)
    with runner(embedded_kafka, tmp_path, lease=3.0) as process:
        publish(embedded_kafka, range(5, 6))
        until(lambda: done(tmp_path) == 6, "the next one is done")
    assert paid(tmp_path) == sorted([*finished, "task-5"])
    events = [codec.decode(m.value(), AgentEvent) for m in read_whole(embedded_kafka, EVENTS, reader="test", timeout=10)]
    starts = [event for event in events if isinstance(event.body, TrajectoryStarted)]
    assert {s.body.parent_trajectory for s in starts if isinstance(s.body, TrajectoryStarted)} == {f"s-{n}" for n in range(6)}
    assert {event.policy.role for event in events} == {PolicyRole.TEACHER}
