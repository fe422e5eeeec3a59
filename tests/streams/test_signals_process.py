"""The process on a broker: what it asks for, killed at every step and started again."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from stillhouse.schemas.facts import TeacherTaskKind
from stillhouse.schemas.ledger import Side
from stillhouse.schemas.teacher_runs import ISSUED, TABLE
from stillhouse.schemas.topics import DLQ, TRAJECTORIES
from stillhouse.sdk.kafka import topic_name
from stillhouse.sdk.store import Store
from tests.support.ingest import Topics
from tests.support.signals import NOW, Process, failures, has_runner, mark, runs_of, say, side_of, stored, tasks_on
from tests.support.waiting import until

COUNT = 40
TRAINED = [number for number in range(COUNT) if side_of(number) is Side.TRAIN]
BUDGET = len(TRAINED) - 5


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path


def requested(store: Store) -> list[dict[str, Any]]:
    return store.rows("windows", "state = 'requested'")


def issued(store: Store) -> list[dict[str, Any]]:
    return store.rows(TABLE, f"state = '{ISSUED}'")


def looks(metrics: str) -> float:
    text = urllib.request.urlopen(metrics, timeout=10).read().decode()
    return float(text.partition("\nstillhouse_signals_looks_total ")[2].partition("\n")[0] or 0)


def test_windows_and_tasks_are_asked_for_and_a_bad_record_stops_nothing(topics: Topics, store: Store, state: Path) -> None:
    stored(store, [*runs_of(range(100, 120)), *failures(range(COUNT))])
    has_runner(store, "refund")
    topics.raw(b"no fact", "acme/bad", topic=topic_name(topics.kafka, TRAJECTORIES))
    say(topics, mark(NOW))
    with Process(topics, state, window__min_kept="20") as signals:
        said = signals.ready()
        until(lambda: len(requested(store)) == 3, "windows are requested")
        until(lambda: len(issued(store)) == len(TRAINED), "tasks are issued")
        until(lambda: len(topics.read(DLQ)) == 1, "the bad record is a dead letter")
        metrics = urllib.request.urlopen(said["metrics"], timeout=10).read().decode()
        assert 'stillhouse_signals_window_requests_total{reason="successes"} 1.0' in metrics
        assert 'stillhouse_signals_dlq_total{reason="framing"} 1.0' in metrics
        assert f'stillhouse_signals_tasks_total{{family="refund",kind="failed"}} {len(TRAINED)}.0' in metrics
        for path in ("healthz", "readyz"):
            assert json.loads(urllib.request.urlopen(f"{said['url']}/{path}", timeout=10).read())["ok"]
        assert signals.stop() == 0
    assert {row["data"]["reason"] for row in requested(store)} == {"successes", "age", "failures"}
    tasks = tasks_on(topics)
    assert {task.source_task_id for task in tasks} == {f"task-{number}" for number in TRAINED}
    assert all(task.kind is TeacherTaskKind.FAILED and task.tenant == "acme" for task in tasks)


@pytest.mark.parametrize("step", ["requests:1", "placed:1", "issuing:1", "published:1", "issued:1"])
def test_killed_at_a_step_the_next_one_completes_it(topics: Topics, store: Store, state: Path, step: str) -> None:
    stored(store, [*runs_of(range(100, 120)), *failures(range(COUNT))])
    has_runner(store, "refund")
    say(topics, mark(NOW))
    settings = {"window__min_kept": "20", "family_tasks_per_day": str(BUDGET)}
    with Process(topics, state, die=step, **settings) as signals:
        assert signals.wait() == -9
    with Process(topics, state, **settings) as signals:
        url = signals.ready()["metrics"]
        until(lambda: len(issued(store)) == BUDGET and bool(requested(store)), "the rest is done")
        stored(store, failures(range(COUNT), name="again"))  # the same tasks, failed again
        before = looks(url)
        until(lambda: looks(url) >= before + 2, "further looks")
        assert signals.stop() == 0
    tasks = tasks_on(topics)
    sources = {task.source_task_id for task in tasks}
    assert len({task.task_id for task in tasks}) == len(sources) == BUDGET == len(issued(store))
    assert sources <= {f"task-{number}" for number in TRAINED}
    assert len(tasks) == (2 * BUDGET if step == "published:1" else BUDGET)  # said twice is still one task
