"""What every Kafka broker that Stillhouse runs on must do; each test runs on the embedded one and on Apache Kafka."""
# mypy: disable-error-code="attr-defined, no-untyped-call"
# confluent-kafka says that it is typed, but its admin module does not re-export its names, and some of them have no types.

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.partitioner import murmur2
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.memory_records import MemoryRecords
from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka import TopicPartition as Place
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, OffsetSpec
from confluent_kafka.cimpl import NewTopic

from tests.support.records import GZIP, ask, fetch_raw, make_batch, produce_raw

DEADLINE = 40.0
DAY_MS = 24 * 3600 * 1000
MakeTopic = Callable[..., str]


def now_ms() -> int:
    return int(time.time() * 1000)


def partition_of(key: bytes, partitions: int) -> int:
    return int(murmur2(key) & 0x7FFFFFFF) % partitions


async def read_all(bootstrap: str, topic: str, count: int, partitions: int = 1) -> list[Any]:
    """`count` records of a topic from the start, then nothing more."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    consumer.assign([TopicPartition(topic, index) for index in range(partitions)])
    records: list[Any] = []
    try:
        async with asyncio.timeout(DEADLINE):
            while len(records) < count:
                records += [r for batch in (await consumer.getmany(timeout_ms=500)).values() for r in batch]
        records += [r for batch in (await consumer.getmany(timeout_ms=200)).values() for r in batch]
    finally:
        await consumer.stop()
    return records


def code_of(error: KafkaException) -> int:
    code: int = error.args[0].code()
    return code


async def test_both_clients_put_a_key_where_murmur2_says(bootstrap: str, make_topic: MakeTopic) -> None:
    topic = make_topic(6)
    keys = [f"trajectory-{number}".encode() for number in range(60)]
    confluent = Producer({"bootstrap.servers": bootstrap, "partitioner": "murmur2_random"})
    for key in keys:
        confluent.produce(topic, b"confluent", key=key)
    assert confluent.flush(20) == 0
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        for key in keys:
            await producer.send(topic, b"aiokafka", key=key)
    records = await read_all(bootstrap, topic, 120, 6)
    assert len(records) == 120
    expected = {(key, client, partition_of(key, 6)) for key in keys for client in (b"confluent", b"aiokafka")}
    assert {(r.key, r.value, r.partition) for r in records} == expected


async def test_log_append_time_replaces_the_producers_clock(bootstrap: str, make_topic: MakeTopic) -> None:
    topic = make_topic(message_timestamp_type="LogAppendTime")
    before = now_ms()
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        for stamp in (1, before - 30 * DAY_MS, before + DAY_MS):
            sent = await producer.send_and_wait(topic, b"x", timestamp_ms=stamp)
            assert sent.timestamp_type == 1 and before <= sent.timestamp <= now_ms()
    records = await read_all(bootstrap, topic, 3)
    assert [r.timestamp_type for r in records] == [1, 1, 1]
    assert all(before <= r.timestamp <= now_ms() for r in records)


async def test_a_clock_more_than_an_hour_ahead_is_refused(bootstrap: str, make_topic: MakeTopic) -> None:
    topic = make_topic()
    assert (await produce_raw(bootstrap, topic, make_batch([b"x"], timestamps=[now_ms() + 2 * 3600 * 1000])))[0] == 32
    assert (await produce_raw(bootstrap, topic, make_batch([b"x"], timestamps=[now_ms() + 1800 * 1000])))[0] == 0


@pytest.mark.parametrize("codec", [0, GZIP])
async def test_offsets_for_times_are_exact_within_batches(bootstrap: str, make_topic: MakeTopic, codec: int) -> None:
    topic, base = make_topic(), now_ms() - 100_000
    for first in (0, 10, 20):
        stamps = [base + 1000 * (first + i) for i in range(10)]
        assert await produce_raw(bootstrap, topic, make_batch([b"v"] * 10, timestamps=stamps, codec=codec)) == (0, first)
    place = TopicPartition(topic, 0)
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap) as consumer:
        for asked, expected in ((0, 0), (base, 0), (base + 1, 1), (base + 14_000, 14), (base + 28_500, 29)):
            found = (await consumer.offsets_for_times({place: asked}))[place]
            assert (found.offset, found.timestamp) == (expected, base + 1000 * expected)
        assert (await consumer.offsets_for_times({place: base + 29_001}))[place] is None
        assert await consumer.beginning_offsets([place]) == {place: 0}
        assert await consumer.end_offsets([place]) == {place: 30}


async def test_a_batch_above_max_message_bytes_is_refused_alone(bootstrap: str, make_topic: MakeTopic) -> None:
    topic = make_topic(max_message_bytes="2000")
    assert (await produce_raw(bootstrap, topic, make_batch([b"x" * 2000])))[0] == 10
    assert await produce_raw(bootstrap, topic, make_batch([b"x" * 1500])) == (0, 0)


async def test_end_offset_is_right_after_a_batched_produce(bootstrap: str, make_topic: MakeTopic) -> None:
    topic = make_topic()
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5, "queue.buffering.max.messages": 200_000})
    for number in range(20_000):
        producer.produce(topic, b"%d" % number)
    assert producer.flush(30) == 0
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": uuid4().hex})
    assert consumer.get_watermark_offsets(Place(topic, 0), timeout=10) == (0, 20_000)
    consumer.close()


async def test_repeats_gaps_and_old_epochs_of_an_idempotent_producer(bootstrap: str, make_topic: MakeTopic) -> None:
    topic, producer = make_topic(), 4_000_000

    async def produce(sequence: int, epoch: int = 1, count: int = 2) -> tuple[int, int]:
        return await produce_raw(
            bootstrap, topic, make_batch([b"x"] * count, timestamps=[now_ms()] * count, producer=producer, epoch=epoch, sequence=sequence)
        )

    assert [await produce(s) for s in (0, 2, 4)] == [(0, 0), (0, 2), (0, 4)]
    assert [await produce(s) for s in (4, 2, 0)] == [(0, 4), (0, 2), (0, 0)], "a repeat is acknowledged where it is"
    assert (await produce(8))[0] == 45, "a gap"
    assert (await produce(6, epoch=0))[0] == 47, "a fenced epoch"
    assert (await produce(3, epoch=2))[0] == 45, "a new epoch begins at 0"
    assert await produce(0, epoch=2) == (0, 6)
    assert len(await read_all(bootstrap, topic, 8)) == 8


@pytest.mark.parametrize("client", ["aiokafka", "confluent"])
async def test_an_idempotent_producer_keeps_order_without_repeats(bootstrap: str, make_topic: MakeTopic, client: str) -> None:
    topic, values = make_topic(), [b"%d" % number for number in range(3000)]
    if client == "aiokafka":
        async with AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True) as producer:
            await asyncio.gather(*[await producer.send(topic, value) for value in values])
    else:
        confluent = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True})
        for value in values:
            confluent.produce(topic, value)
        assert confluent.flush(20) == 0
    assert [r.value for r in await read_all(bootstrap, topic, 3000)] == values


async def test_a_fetch_keeps_to_its_byte_limits(bootstrap: str, make_topic: MakeTopic) -> None:
    topic = make_topic()
    batch = make_batch([b"x" * 10_000], timestamps=[now_ms()])
    for _ in range(20):
        assert (await produce_raw(bootstrap, topic, batch))[0] == 0
    for max_bytes, partition_bytes in ((45_000, 1_000_000), (1_000_000, 45_000)):
        error, records = await fetch_raw(bootstrap, topic, 3, max_bytes=max_bytes, partition_bytes=partition_bytes)
        assert error == 0 and 4 * len(batch) <= len(records) <= 45_000
        first = MemoryRecords(records).next_batch()
        assert first is not None and first.base_offset == 3
    error, records = await fetch_raw(bootstrap, topic, 3, max_bytes=100, partition_bytes=100)
    assert error == 0 and len(records) >= len(batch), "one whole batch comes even if it is larger than the limits"
    assert (await fetch_raw(bootstrap, topic, 21, max_bytes=100, partition_bytes=100))[0] == 1


async def test_a_fetch_of_several_partitions_shares_its_limit_and_says_errors_at_once(bootstrap: str, make_topic: MakeTopic) -> None:
    topic = make_topic(3)
    batch = make_batch([b"x" * 10_000], timestamps=[now_ms()])
    for partition in (0, 1):
        for _ in range(10):
            assert (await produce_raw(bootstrap, topic, batch, partition))[0] == 0

    async def fetch(max_bytes: int, *places: tuple[int, int]) -> dict[int, tuple[int, int]]:
        request = FetchRequest(50_000, 1, max_bytes, 0, [(topic, [(partition, offset, 60_000) for partition, offset in places])])
        ((_, partitions),) = (await ask(bootstrap, request)).topics
        return {partition: (error, len(records)) for partition, error, *_, records in partitions}

    async with asyncio.timeout(20):  # well below the 50 s that a fetch without data would wait
        found = await fetch(75_000, (0, 0), (1, 0))
        assert len(batch) * 5 <= found[0][1] <= 60_000 and found[0][1] + found[1][1] <= 75_000
        found = await fetch(100, (0, 0), (1, 0))
        assert found[0][1] >= len(batch) and found[1][1] <= 100, "only the first comes whole at any size"
        assert await fetch(100, (2, 0), (0, 11)) == {2: (0, 0), 0: (1, 0)}


def test_topic_errors(admin: AdminClient, make_topic: MakeTopic) -> None:
    existing = make_topic()

    def refused(topic: NewTopic) -> int:
        with pytest.raises(KafkaException) as caught:
            admin.create_topics([topic])[topic.topic].result(20)
        return code_of(caught.value)

    fresh = uuid4().hex
    assert refused(NewTopic(existing, 1, 1)) == 36
    assert refused(NewTopic(fresh, 1, 2)) == 38
    assert refused(NewTopic(fresh, 1, 1, config={"segment.bytes": "1000"})) == 40
    assert refused(NewTopic(fresh, 1, 1, config={"no.such.setting": "1"})) == 40
    assert refused(NewTopic(fresh, 0, 1)) == 37
    assert refused(NewTopic("not a name", 1, 1)) == 17
    assert fresh not in admin.list_topics(timeout=10).topics
    with pytest.raises(KafkaException) as caught:
        admin.delete_topics([fresh])[fresh].result(20)
    assert code_of(caught.value) == 3
    admin.delete_topics([existing])[existing].result(20)
    wait_for(lambda: existing not in admin.list_topics(timeout=10).topics)


def wait_for(condition: Callable[[], bool]) -> None:
    """Until `condition` holds; each check asks a broker, so this is no busy loop."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"


def settings_of(admin: AdminClient, topic: str) -> dict[str, str]:
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    return {name: entry.value for name, entry in admin.describe_configs([resource])[resource].result(20).items()}


def test_settings_are_described_and_altered(admin: AdminClient, make_topic: MakeTopic) -> None:
    topic = make_topic(retention_ms="1234567")
    found = settings_of(admin, topic)
    expected = {"retention.ms": "1234567", "retention.bytes": "-1", "cleanup.policy": "delete", "max.message.bytes": "1048588"}
    assert expected.items() <= found.items() and found["message.timestamp.type"] == "CreateTime"

    def alter(name: str, value: str | None, operation: AlterConfigOpType) -> None:
        entry = ConfigEntry(name, value, incremental_operation=operation)
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
        admin.incremental_alter_configs([resource])[resource].result(20)

    alter("max.message.bytes", "5000", AlterConfigOpType.SET)
    alter("retention.ms", None, AlterConfigOpType.DELETE)
    wait_for(lambda: settings_of(admin, topic)["max.message.bytes"] == "5000" and settings_of(admin, topic)["retention.ms"] == "604800000")
    with pytest.raises(KafkaException) as caught:
        alter("segment.bytes", "1", AlterConfigOpType.SET)
    assert code_of(caught.value) == 40


async def test_retention_by_time_takes_the_active_segment_and_by_bytes_closed_ones(
    bootstrap: str, admin: AdminClient, make_topic: MakeTopic
) -> None:
    old, large = make_topic(retention_ms=str(DAY_MS)), make_topic(retention_bytes="1048576", segment_bytes="1048576")
    await produce_raw(bootstrap, old, make_batch([b"x"] * 5, timestamps=[now_ms() - 30 * DAY_MS] * 5))
    for _ in range(6):
        assert (await produce_raw(bootstrap, large, make_batch([b"x" * 500_000], timestamps=[now_ms()])))[0] == 0

    def start_of(topic: str) -> int:
        place = Place(topic, 0)
        return int(admin.list_offsets({place: OffsetSpec.earliest()})[place].result(20).offset)

    wait_for(lambda: start_of(old) == 5 and start_of(large) == 2)
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap) as consumer:
        assert await consumer.end_offsets([TopicPartition(old, 0)]) == {TopicPartition(old, 0): 5}
    assert await produce_raw(bootstrap, old, make_batch([b"y"], timestamps=[now_ms()])) == (0, 5)
    assert [r.offset for r in await read_all(bootstrap, large, 4)] == [2, 3, 4, 5]


class Changes(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka ships no types
    """Counts what a rebalance did, and wakes who waits for it."""

    def __init__(self) -> None:
        self.assigned: list[int] = []
        self.count = 0
        self.changed = asyncio.Condition()

    async def on_partitions_revoked(self, revoked: Any) -> None:
        pass

    async def on_partitions_assigned(self, assigned: Any) -> None:
        async with self.changed:
            self.assigned = sorted(place.partition for place in assigned)
            self.count += 1
            self.changed.notify_all()

    async def has(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE), self.changed:
            await self.changed.wait_for(lambda: len(self.assigned) == count)


async def member(bootstrap: str, group: str, topic: str, instance: str | None = None) -> tuple[AIOKafkaConsumer, Changes]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, group_id=group, group_instance_id=instance, session_timeout_ms=6000, heartbeat_interval_ms=500,
        auto_offset_reset="earliest", enable_auto_commit=False,
    )  # fmt: skip
    changes = Changes()
    consumer.subscribe([topic], listener=changes)
    await consumer.start()
    return consumer, changes


async def test_a_group_goes_on_after_its_leader_was_killed(bootstrap: str, make_topic: MakeTopic) -> None:
    topic, group = make_topic(4), uuid4().hex
    leader = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("group_member.py")), bootstrap, group, topic], stdout=subprocess.PIPE, text=True
    )
    assert leader.stdout is not None
    try:
        assert await asyncio.to_thread(leader.stdout.readline) == "0,1,2,3\n"
        other, changes = await member(bootstrap, group, topic)
        try:
            await changes.has(2)
            leader.send_signal(signal.SIGKILL)
            await changes.has(4)
        finally:
            await other.stop()
    finally:
        leader.kill()
        leader.wait()
        leader.stdout.close()


async def test_a_static_member_comes_back_unnoticed(bootstrap: str, make_topic: MakeTopic) -> None:
    topic, group = make_topic(4), uuid4().hex
    first, first_changes = await member(bootstrap, group, topic, "one")
    second, second_changes = await member(bootstrap, group, topic, "two")
    await asyncio.gather(first_changes.has(2), second_changes.has(2))
    noticed, held = second_changes.count, first_changes.assigned
    await first.stop()  # a static member does not say that it leaves
    first, first_changes = await member(bootstrap, group, topic, "one")
    try:
        await first_changes.has(2)
        assert first_changes.assigned == held and second_changes.count == noticed
    finally:
        await first.stop()
        await second.stop()


async def test_commits_carry_metadata_and_groups_are_administered(bootstrap: str, admin: AdminClient, make_topic: MakeTopic) -> None:
    topic, group = make_topic(2), uuid4().hex
    consumer, changes = await member(bootstrap, group, topic)
    await changes.has(2)
    await consumer.commit({TopicPartition(topic, 0): (7, "where I was"), TopicPartition(topic, 1): (9, "")})
    described = admin.describe_consumer_groups([group])[group].result(20)
    assert str(described.state) == "ConsumerGroupState.STABLE" and len(described.members) == 1
    with pytest.raises(KafkaException) as caught:
        admin.delete_consumer_groups([group])[group].result(20)
    assert code_of(caught.value) == 68
    await consumer.stop()
    assert group in {g.group_id for g in admin.list_consumer_groups().result(20).valid}
    reader = Consumer({"bootstrap.servers": bootstrap, "group.id": group})
    committed = reader.committed([Place(topic, 0), Place(topic, 1)], timeout=10)
    reader.close()
    assert [(place.offset, place.metadata) for place in committed] == [(7, "where I was"), (9, None)]
    admin.delete_consumer_groups([group])[group].result(20)
    with pytest.raises(KafkaException) as caught:
        admin.delete_consumer_groups([group])[group].result(20)
    assert code_of(caught.value) == 69
