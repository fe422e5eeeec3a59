"""A worker that is to stop stops, whatever is away; and what takes longer than a rebalance allows is not lost sight of."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stillhouse.schemas.codec import SchemaPendingError
from stillhouse.schemas.errors import UnreachableError
from stillhouse.sdk.store import Store
from stillhouse.streams.ingest.worker import Worker
from stillhouse.streams.instruments import Instruments
from tests.support.brokers import start_embedded
from tests.support.events import trajectory
from tests.support.ingest import QUICK, Topics, running
from tests.support.waiting import until_async

PATIENCE = 30.0


@pytest.mark.parametrize("away", ["dlq", "registry", "store"])
async def test_a_stop_does_not_wait_for_what_is_away(topics: Topics, store: Store, away: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(topics, store) as worker:
        attempts = 0

        def fails(*_: Any, **__: Any) -> Any:
            nonlocal attempts
            attempts += 1
            raise SchemaPendingError("away") if away == "registry" else UnreachableError("away")

        async def fails_later(*_: Any) -> Any:
            fails()

        if away == "dlq":
            monkeypatch.setattr(worker._outbox, "dead_letters", fails_later)
        elif away == "registry":
            monkeypatch.setattr(worker._decoder, "batch", fails)
        else:
            monkeypatch.setattr(store, "compare_and_set", fails)
        topics.raw(b"garbage")
        topics.produce(trajectory(1))
        await until_async(lambda: attempts > 1, "it waits")
        unread = topics.unread()
        worker.stop()
    assert topics.unread() == unread > 0, "nothing was committed that was not handled"
    monkeypatch.undo()
    async with running(topics, store):
        await until_async(lambda: topics.unread() == 0, "all committed")
    assert [row["status"] for row in store.trajectories()] == ["ended"]


async def test_a_stop_does_not_wait_for_a_broker_that_is_gone(store: Store, tmp_path: Path) -> None:
    broker = start_embedded(tmp_path / "broker")
    worker = Worker(Topics(broker.bootstrap).kafka, QUICK, store, 0, Instruments("stillhouse_ingest_"))
    joined = asyncio.Event()
    await worker.start()
    running_ = asyncio.create_task(worker.run(joined.set))
    await asyncio.wait_for(joined.wait(), PATIENCE)
    broker.kill()
    worker.stop()
    await asyncio.wait_for(running_, PATIENCE)
    await asyncio.wait_for(worker.close(), PATIENCE)


async def test_a_flush_that_outlives_the_rebalance_stays_the_one_that_is_going_on(
    topics: Topics, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty = msgspec.structs.replace(QUICK, session_timeout=6.0)
    async with running(topics, store, hasty) as worker:
        go, begun = asyncio.Event(), 0
        drain = worker.flusher.drain

        async def slow(cause: str) -> None:
            nonlocal begun
            begun += 1
            await go.wait()
            await drain(cause)

        monkeypatch.setattr(worker.flusher, "drain", slow)
        monkeypatch.setattr(worker, "_settings", msgspec.structs.replace(hasty, session_timeout=0.02))
        await worker._on_revoked()
        first = worker._flushing
        assert first is not None and not first.done() and begun == 1
        await worker._on_revoked()
        assert begun == 1, "a second one waits for the first"
        go.set()
        await until_async(lambda: worker._flushing is None, "the loop has taken note of its end")
        assert first.done() and begun == 2
