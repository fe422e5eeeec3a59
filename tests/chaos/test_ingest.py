"""Ingest as a process: killed at each numbered step, stopped in the middle of a flush, without disk, without broker."""

import json
import os
import resource
import signal
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer, TopicPartition

from stillhouse.schemas.events import AgentEvent, Outcome
from stillhouse.sdk.store import Store
from tests.support.events import feedback, trajectory
from tests.support.ingest import QUICK, Process, Topics, expected_hash
from tests.support.waiting import until

STEPS = ("fetch:1", "decode:2", "group:2", "read:1", "chunks:1", "rows:2", "facts:1", "commit:2")
SMALL = msgspec.structs.replace(QUICK, flush_rows=15, fetch_records=100)


def _interleaved(runs: int) -> list[AgentEvent]:
    """Many trajectories, an event of each in turn, with duplicates and late feedback."""
    made = [[*trajectory(n, steps=3), feedback(n, (Outcome.FAILURE, Outcome.SUCCESS)[n % 2])] for n in range(runs)]
    events = [run[place] for place in range(6) for run in made]
    return events + events[::7]


def test_killed_at_each_step_the_rows_are_the_fold(topics: Topics, tmp_path: Path) -> None:
    events = _interleaved(110)  # over two partitions: more than 50 in each
    topics.produce(events)
    for die in STEPS:
        with Process(topics, tmp_path / "state", die=die, settings=SMALL) as process:
            assert process.wait() == -signal.SIGKILL, (die, process.log.read_text()[-2000:])
    with Process(topics, tmp_path / "state", settings=SMALL) as last:
        last.ready()
        until(lambda: topics.unread() == 0, "all committed")
        assert last.stop() == 0, last.log.read_text()[-2000:]
    assert Store.open(tmp_path / "state" / "lance").table_hash() == expected_hash(tmp_path / "expected", events)
    assert topics.read("agent.events.dlq") == []


def test_a_worker_stopped_in_step_5_beyond_its_session_comes_back_and_harms_nothing(topics: Topics, tmp_path: Path) -> None:
    events = _interleaved(40)
    topics.produce(events)
    with Process(topics, tmp_path / "state", die="chunks:1:STOP", settings=SMALL) as zombie:
        pid = zombie.process.pid
        until(lambda: Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T", "the worker is stopped")
        with Process(topics, tmp_path / "state", ordinal=1, settings=SMALL) as heir:
            heir.ready()
            until(lambda: topics.unread() == 0, "the heir has taken over")
            os.kill(pid, signal.SIGCONT)
            metrics = zombie.ready()["metrics"]
            until(lambda: _total(metrics, "stillhouse_ingest_flushes_total") > 0, "it went on with its write, and ended that flush")
            more = [e for n in range(40, 60) for e in trajectory(n)]
            topics.produce(more)
            until(lambda: topics.unread() == 0, "all committed")
            assert heir.stop() == 0
        assert zombie.stop() == 0, zombie.log.read_text()[-2000:]
    assert Store.open(tmp_path / "state" / "lance").table_hash() == expected_hash(tmp_path / "expected", [*events, *more])


def _total(metrics: str, name: str) -> float:
    """The value of a counter, over all labels."""
    with urllib.request.urlopen(metrics, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def _ready(ready: dict[str, Any]) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(ready["url"] + "/readyz", timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        found = json.load(error)
        error.close()
    return found


def test_a_full_disk_pauses_and_loses_nothing(topics: Topics, tmp_path: Path) -> None:
    events = _interleaved(20)
    with Process(topics, tmp_path / "state") as process:
        ready = process.ready()
        Store.open(tmp_path / "state" / "lance").table("transcripts")
        hard = resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (16, hard))
        topics.produce(events)
        until(lambda: bool(_ready(ready)["waiting"]), "it waits for the store")
        assert not _ready(ready)["ok"]
        assert topics.unread() == len(events)
        resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        until(lambda: topics.unread() == 0, "all committed")
        assert process.stop() == 0
    assert Store.open(tmp_path / "state" / "lance").table_hash() == expected_hash(tmp_path / "expected", events)
    assert topics.read("agent.events.dlq") == []


def test_stopped_it_flushes_what_is_complete_and_leaves_the_rest_to_the_log(topics: Topics, tmp_path: Path) -> None:
    patient = msgspec.structs.replace(QUICK, park_after=600.0, flush_every=500.0)
    topics.produce([*trajectory(1), *trajectory(2)[:-1]])
    with Process(topics, tmp_path / "state", settings=patient) as process:
        ready = process.ready()
        until(lambda: sum(_ready(ready)["positions"].values()) == 9, "all read")
        with urllib.request.urlopen(ready["metrics"], timeout=5) as answer:
            assert b"stillhouse_ingest_open_trajectories" in answer.read()
        assert process.stop() == 0
    assert [row["key"] for row in Store.open(tmp_path / "state" / "lance").trajectories()] == ["acme/t-1"]
    with Process(topics, tmp_path / "state") as process:
        process.ready()
        until(lambda: topics.unread() == 0, "the rest is parked and flushed")
        assert process.stop() == 0
    rows = Store.open(tmp_path / "state" / "lance").trajectories()
    assert [row["status"] for row in rows] == ["ended", "unended"]


def test_offsets_that_the_log_no_longer_has_are_a_decision(topics: Topics, tmp_path: Path) -> None:
    topics.produce(trajectory(1))
    member: Any = Consumer({"bootstrap.servers": topics.kafka.bootstrap_servers, "group.id": f"{topics.kafka.prefix}.stillhouse-ingest"})
    member.commit(offsets=[TopicPartition(topics.events, n, 1000) for n in range(2)], asynchronous=False)
    member.close()
    with Process(topics, tmp_path / "state") as process:
        assert process.wait() == 1
        assert 'lost_offsets = \\"earliest\\"' in process.log.read_text()
    with Process(topics, tmp_path / "state", settings=msgspec.structs.replace(QUICK, lost_offsets="earliest")) as process:
        process.ready()
        until(lambda: topics.unread() == 0, "all committed")
        assert process.stop() == 0
    assert len(Store.open(tmp_path / "state" / "lance").trajectories()) == 1


def test_an_ordinal_that_is_held_is_refused(topics: Topics, tmp_path: Path) -> None:
    with Process(topics, tmp_path / "state") as first:
        first.ready()
        with Process(topics, tmp_path / "state") as second:
            assert second.wait() == 1
            assert "another process is ingest-0" in second.log.read_text()


@pytest.mark.parametrize("what", ["no broker", "no topics"])
def test_what_is_missing_is_said(what: str, embedded: str, tmp_path: Path, unused: Callable[[], str]) -> None:
    topics = Topics(embedded)
    settings = msgspec.structs.replace(topics.kafka, prefix="absent", bootstrap_servers=unused() if what == "no broker" else embedded)
    topics.kafka = settings
    with Process(topics, tmp_path / "state") as process:
        assert process.wait() == (3 if what == "no broker" else 1)
        said = process.log.read_text()
    assert settings.bootstrap_servers in said
    assert ("no Kafka broker answers" if what == "no broker" else "stillhouse topics apply") in said
