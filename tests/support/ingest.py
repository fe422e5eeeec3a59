"""Ingest under test: topics of its own, events produced, the process or the worker, and what the rows must be."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
from confluent_kafka import Consumer, Producer, TopicPartition

from stillhouse.schemas import codec
from stillhouse.schemas.event_set import member
from stillhouse.schemas.events import AgentEvent
from stillhouse.schemas.topics import DLQ_MAX_BYTES, EVENTS
from stillhouse.sdk.kafka import KafkaSettings, apply_topics, confluent_producer_args, topic_name
from stillhouse.sdk.store import Store
from stillhouse.streams.ingest.rows import Read
from stillhouse.streams.ingest.sink import Sink, Unit
from stillhouse.streams.ingest.worker import Worker
from stillhouse.streams.instruments import Instruments
from stillhouse.streams.settings import IngestSettings
from tests.support.child import Child

QUICK = IngestSettings(flush_every=0.2, park_after=1.0, session_timeout=6.0, retry_wait=0.1)
"""Settings for tests: nothing waits long."""


class Topics:
    """The topics of one test, under a prefix of its own."""

    def __init__(self, bootstrap: str, partitions: int = 2) -> None:
        self.kafka = KafkaSettings(bootstrap_servers=bootstrap, prefix=f"t{uuid4().hex[:10]}", partitions=partitions)
        apply_topics(self.kafka)
        self.events = topic_name(self.kafka, EVENTS)
        self.partitions = partitions
        self._producer: Any = Producer(confluent_producer_args(self.kafka, **{"message.max.bytes": DLQ_MAX_BYTES}))

    def produce(self, events: Iterable[AgentEvent], way_in: str = "sdk") -> None:
        """Send events as an SDK does, and wait for their delivery."""
        for event in events:
            self._producer.produce(self.events, codec.encode(event), key=event.key, headers=codec.headers_for(event, way_in))
        assert self._producer.flush(30) == 0

    def raw(self, value: bytes, key: str = "acme/x", source: str | None = "acme/sdk", topic: str | None = None) -> None:
        """Send one record as it is, and wait for its delivery."""
        headers: list[Any] = [("ce_source", source.encode())] if source else []
        failed: list[object] = []
        self._producer.produce(
            topic or self.events, value, key=key, headers=headers, on_delivery=lambda e, m: failed.append(e) if e else None
        )
        assert self._producer.flush(30) == 0 and not failed, failed

    def read(self, name: str) -> list[Any]:
        """Every record of a topic up to its end now."""
        topic = topic_name(self.kafka, name)
        reader: Any = Consumer({"bootstrap.servers": self.kafka.bootstrap_servers, "group.id": "test-reader", "enable.auto.commit": False})
        found, left = [], {}
        for partition in reader.list_topics(topic, timeout=10).topics[topic].partitions:
            first, end = reader.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
            if end > first:
                left[partition] = end
        reader.assign([TopicPartition(topic, partition, 0) for partition in left])
        while left:
            message = reader.poll(10)
            assert message is not None and not message.error()
            found.append(message)
            if message.offset() + 1 >= left[message.partition()]:
                reader.incremental_unassign([TopicPartition(topic, message.partition())])
                del left[message.partition()]
        reader.close()
        return found

    def unread(self, group: str = "stillhouse-ingest") -> int:
        """How many events are not committed yet."""
        reader: Any = Consumer({"bootstrap.servers": self.kafka.bootstrap_servers, "group.id": f"{self.kafka.prefix}.{group}"})
        places = [TopicPartition(self.events, partition) for partition in range(self.partitions)]
        committed = sum(max(0, place.offset) for place in reader.committed(places, timeout=10))
        ends = sum(reader.get_watermark_offsets(place, timeout=10)[1] for place in places)
        reader.close()
        return int(ends - committed)


class Process(Child):
    """`python -m stillhouse.streams.ingest` on a state folder."""

    def __init__(self, topics: Topics, state: Path, *, ordinal: int = 0, die: str = "", settings: IngestSettings = QUICK) -> None:
        changed = {k: v for k, v in msgspec.structs.asdict(settings).items() if v != getattr(IngestSettings(), k)}
        environment = os.environ | {f"STILLHOUSE_INGEST__{k.upper()}": str(v) for k, v in changed.items()}
        environment |= {"STILLHOUSE_KAFKA__PREFIX": topics.kafka.prefix, "STILLHOUSE_TEST_DIE": die}
        command = [sys.executable, "-m", "stillhouse.streams.ingest", "--state", str(state), "--ordinal", str(ordinal)]
        command += ["--bootstrap-servers", topics.kafka.bootstrap_servers]
        super().__init__(f"ingest-{ordinal}", command, state, environment)


@asynccontextmanager
async def running(topics: Topics, store: Store, settings: IngestSettings = QUICK, ordinal: int = 0) -> AsyncIterator[Worker]:
    """A worker in this process, reading; stopped at the end."""
    worker = Worker(topics.kafka, settings, store, ordinal, Instruments("stillhouse_ingest_"))
    joined = asyncio.Event()
    await worker.start()
    task = asyncio.create_task(worker.run(joined.set))
    try:
        await asyncio.wait({task, asyncio.ensure_future(joined.wait())}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        assert joined.is_set(), task
        yield worker
    finally:
        worker.stop()
        try:
            await task
        finally:
            await worker.close()


def expected_hash(folder: Path, events: Iterable[AgentEvent]) -> str:
    """The table hash that these events must give, by the fold alone."""
    by_key: dict[str, Unit] = {}
    for event in events:
        one = member(event)
        by_key.setdefault(event.key, Unit(event.key, {}, Read(0, 0, 0, 0))).members[one.digest] = one
    store = Store.open(folder)
    Sink(store, lambda: 0).write(list(by_key.values()))
    return store.table_hash()
