"""What is too large, what is away for long, and where a first start begins: nothing is lost, and nothing stops that need not."""

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import KafkaError, Producer

from stillhouse.schemas import codec
from stillhouse.schemas.errors import UnreachableError
from stillhouse.schemas.events import AgentEvent, ClientReport
from stillhouse.schemas.topics import DLQ
from stillhouse.sdk.client import Client
from stillhouse.sdk.kafka import confluent_producer_args
from stillhouse.sdk.store import Store
from tests.support.events import event, step, trajectory
from tests.support.ingest import QUICK, Topics, expected_hash, running
from tests.support.waiting import until_async

FIVE_MB = "x" * 5_000_000


async def test_an_event_of_5_mb_is_reported_and_the_rest_becomes_rows(topics: Topics, store: Store, tmp_path: Path) -> None:
    huge, events = event(step(1, error=FIVE_MB), 1, at=2), [*trajectory(1)[:2], *trajectory(1)[3:]]
    with Client(settings=topics.kafka, spool=tmp_path / "spool") as client:
        assert all(client.put(one) for one in [*events[:2], huge, *events[2:]])
    assert client.close().rejected == {"too_large": 1}
    assert [file.stem for file in (tmp_path / "spool" / "rejected").iterdir()] == [huge.event_id]
    sent = [codec.decode(message.value(), AgentEvent).body for message in topics.read("agent.events")]
    assert [body for body in sent if isinstance(body, ClientReport)] == [ClientReport(dropped={"too_large": 1})]
    async with running(topics, store):
        await until_async(lambda: topics.unread() == 0, "all committed")
    (row,) = store.trajectories()
    assert (row["status"], row["status_reason"]) == ("incomplete", "step 1 of 3 missing")


async def test_a_record_that_the_topic_does_not_take_is_its_producers_and_ingest_goes_on(
    topics: Topics, store: Store, tmp_path: Path
) -> None:
    before, after = trajectory(1), trajectory(2)
    careless: Any = Producer(confluent_producer_args(topics.kafka, **{"message.max.bytes": 16_000_000}))
    async with running(topics, store):
        topics.produce(before)
        told: list[Any] = []
        huge = event(step(9, error=FIVE_MB), 1, at=99)
        careless.produce(topics.events, codec.encode(huge), key=huge.key, on_delivery=lambda error, _: told.append(error))
        assert careless.flush(30) == 0
        assert [error.code() for error in told] == [KafkaError.MSG_SIZE_TOO_LARGE]
        topics.produce(after)
        await until_async(lambda: topics.unread() == 0, "all committed")
    assert store.table_hash() == expected_hash(tmp_path / "expected", [*before, *after])
    assert topics.read(DLQ) == []


@pytest.mark.parametrize("setting", ["earliest", "latest"])
async def test_where_a_first_start_begins_is_decided_once(topics: Topics, store: Store, setting: str) -> None:
    chosen = msgspec.convert(msgspec.structs.asdict(QUICK) | {"first_start": setting}, type(QUICK))
    topics.produce(trajectory(1))
    async with running(topics, store, chosen):
        await until_async(lambda: topics.unread() == 0, "the start is committed")
    topics.produce(trajectory(2))  # while no worker runs: that is no first start any more
    async with running(topics, store, chosen):
        await until_async(lambda: topics.unread() == 0, "all committed")
    assert [row["key"] for row in store.trajectories()] == ["acme/t-1", "acme/t-2"][setting == "latest" :]


def _appended(topics: Topics, events: list[AgentEvent]) -> dict[int, int]:
    """When the first record of each partition with one of these events was appended, in microseconds."""
    wanted, found = {codec.encode(one) for one in events}, dict[int, int]()
    for message in topics.read("agent.events"):
        if message.value() in wanted:
            found.setdefault(message.partition(), message.timestamp()[1] * 1000)
    return found


async def test_a_store_that_is_away_longer_than_the_groups_patience_moves_no_partition(
    topics: Topics, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = msgspec.structs.replace(QUICK, max_poll_interval=2.0)
    away, attempts = True, 0
    compare_and_set = store.compare_and_set

    def sometimes(table: str, *args: Any, **kw: Any) -> int:
        nonlocal attempts
        if table == "trajectories" and away:
            attempts += 1
            raise UnreachableError("away")
        return compare_and_set(table, *args, **kw)

    monkeypatch.setattr(store, "compare_and_set", sometimes)
    events = [e for n in range(6) for e in trajectory(n)]
    async with running(topics, store, impatient) as worker:
        assigned: list[object] = []
        joined_again = worker.member.on_partitions_assigned

        async def watched(places: Any) -> None:
            assigned.append(places)
            await joined_again(places)

        monkeypatch.setattr(worker.member, "on_partitions_assigned", watched)
        topics.produce(events[:20])
        await until_async(lambda: attempts > 0, "it waits for the store")
        began = time.monotonic()
        topics.produce(events[20:])
        await until_async(lambda: time.monotonic() - began > 3 * impatient.max_poll_interval, "the group's patience is over thrice")
        ready, said = worker.status.ready()
        assert not ready and said["waiting"]
        unhandled = _appended(topics, events[20:])
        marks = {one.number: one.watermark for one in worker._partitions}
        assert all(marks[number] <= first for number, first in unhandled.items()), "no mark passes a record that was not read"
        assert sum(said["lag"].values()) == 10, "ends are known while paused"
        assert topics.unread() == len(events)
        away = False
        await until_async(lambda: topics.unread() == 0, "all committed")
        assert assigned == []
    assert await asyncio.to_thread(store.table_hash) == expected_hash(tmp_path / "expected", events)
