"""The worker on a broker: rows, dead letters, facts, watermarks, limits."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from confluent_kafka import Producer

from stillhouse.schemas import codec
from stillhouse.schemas.events import ClientReport, Outcome, Policy, PolicyRole, TrajectoryStarted
from stillhouse.schemas.facts import Erasure, TrajectoryFacts, Watermark
from stillhouse.schemas.messages import Message
from stillhouse.schemas.topics import DLQ, ERASURES, EVENT_MAX_BYTES, SCHEMAS, TRAJECTORIES
from stillhouse.sdk.kafka import aiokafka_producer_args, confluent_producer_args, topic_name
from stillhouse.sdk.store import Store
from stillhouse.streams import dlq
from stillhouse.streams.ingest.chores import Chores
from tests.support.events import event, feedback, step, trajectory
from tests.support.ingest import QUICK, Topics, expected_hash, running
from tests.support.waiting import until_async


async def test_both_clients_on_one_trajectory_make_one_row_in_one_partition(topics: Topics, store: Store, tmp_path: Path) -> None:
    events = [e for n in range(4) for e in trajectory(n)]
    topics.produce(events[::2])
    producer = AIOKafkaProducer(**aiokafka_producer_args(topics.kafka))
    await producer.start()
    for one in events[1::2]:
        await producer.send_and_wait(topics.events, codec.encode(one), one.key.encode(), headers=codec.headers_for(one, "gateway"))
    await producer.stop()
    async with running(topics, store):
        await until_async(lambda: topics.unread() == 0, "all committed")
    rows = store.trajectories()
    assert [row["status"] for row in rows] == ["ended"] * 4
    assert store.table_hash() == expected_hash(tmp_path / "expected", events)
    places: dict[bytes, set[int]] = {message.key(): set() for message in topics.read("agent.events")}
    for message in topics.read("agent.events"):
        places[message.key()].add(message.partition())
    assert all(len(found) == 1 for found in places.values())


async def test_late_feedback_is_the_next_revision_and_facts_say_what_it_replaced(topics: Topics, store: Store) -> None:
    topics.produce(trajectory(1, outcome=Outcome.UNKNOWN))
    async with running(topics, store):
        await until_async(lambda: len(store.trajectories()) == 1, "a row")
        topics.produce([feedback(1, Outcome.FAILURE)])
        await until_async(lambda: store.trajectories()[0]["revision"] == 6, "a second revision")
        await until_async(lambda: topics.unread() == 0, "all committed")
    row = store.trajectories()[0]
    assert (row["outcome"], row["outcome_source"], row["previous_revision"], len(row["chunks"])) == ("failure", "verifier", 5, 2)
    said = [codec.decode_any(m.value(), (TrajectoryFacts, Watermark)) for m in topics.read(TRAJECTORIES)]
    facts = sorted((f for f in said if isinstance(f, TrajectoryFacts)), key=lambda f: f.revision)
    assert [(f.revision, f.previous_revision, f.outcome) for f in facts] == [(5, 0, Outcome.UNKNOWN), (6, 5, Outcome.FAILURE)]
    marks = [w for w in said if isinstance(w, Watermark)]
    assert {w.partition for w in marks} == {0, 1}
    assert max(w.position for w in marks) == max(w.committed for w in marks)


async def test_what_is_replayed_adds_nothing(topics: Topics, store: Store) -> None:
    events = [e for n in range(3) for e in trajectory(n)]
    topics.produce(events)
    async with running(topics, store):
        await until_async(lambda: topics.unread() == 0, "all committed")
        before = store.table_hash(), [(r["revision"], r["stored_at"]) for r in store.trajectories()]
        topics.produce(events)
        await until_async(lambda: topics.unread() == 0, "all committed again")
    assert (store.table_hash(), [(r["revision"], r["stored_at"]) for r in store.trajectories()]) == before


async def test_an_open_bytes_bound_below_the_concurrency_still_progresses(topics: Topics, store: Store, tmp_path: Path) -> None:
    runs = [trajectory(n, steps=4) for n in range(60)]
    events = [run[place] for place in range(6) for run in runs]
    topics.produce(events)
    tight = msgspec.structs.replace(QUICK, open_bytes=2000, park_after=600, flush_rows=10)
    async with running(topics, store, tight):
        await until_async(lambda: topics.unread() == 0, "all committed")
    assert store.table_hash() == expected_hash(tmp_path / "expected", events)


async def test_what_cannot_be_decoded_is_in_the_dlq_with_its_place_and_can_be_retried(topics: Topics, store: Store) -> None:
    whole = EVENT_MAX_BYTES - 300  # with key, headers and framing this is what a topic takes at most
    for value in (b"", b"garbage", b"\xc3\x01" + b"\0" * 8 + b"x", b"\0\0\0\0\7x", codec.encode(trajectory(1)[0])[:-3], b"z" * whole):
        topics.raw(value)
    topics.produce(trajectory(1))
    async with running(topics, store):
        await until_async(lambda: topics.unread() == 0, "all committed")
    entries = await asyncio.to_thread(dlq.entries, topics.kafka)
    assert sorted(entry.reason for entry in entries) == [
        "corrupt",
        "empty",
        "framing",
        "framing",
        "unknown_fingerprint",
        "unknown_schema_id",
    ]
    assert len({entry.key for entry in entries}) == 6 and all(entry.key.startswith(f"{topics.events}/") for entry in entries)
    biggest = max(entries, key=lambda entry: len(entry.value))
    assert (len(biggest.value), biggest.source_key, biggest.source) == (whole, b"acme/x", "acme/sdk")
    assert await asyncio.to_thread(dlq.show, topics.kafka, biggest.key) == biggest
    assert await asyncio.to_thread(dlq.retry, topics.kafka, lambda entry: entry.key == biggest.key) == 1
    assert await asyncio.to_thread(dlq.retry, topics.kafka, lambda entry: entry.key == biggest.key) == 0
    assert {e.key for e in await asyncio.to_thread(dlq.entries, topics.kafka) if e.retried} == {biggest.key}
    assert max(len(message.value() or b"") for message in topics.read("agent.events")[-2:]) == whole or topics.unread() == 1
    assert [row["status"] for row in store.trajectories()] == ["ended"]


async def test_undecodable_records_at_the_size_limit_and_over_it_are_dead_letters_and_the_events_between_them_rows(
    topics: Topics, store: Store
) -> None:
    run, whole, over = trajectory(1), EVENT_MAX_BYTES - 300, 5_000_000
    limits: Any = {"message.max.bytes": 2 * over, "compression.type": "lz4"}
    packed: Any = Producer(confluent_producer_args(topics.kafka, **limits))  # the limit counts compressed bytes
    for place, one in enumerate(run):
        torn = codec.encode(event(step(0, action=Message(role="assistant", content="x" * (whole + 1000))), 1))[:whole]
        topics.raw(torn if place % 2 else b"z" * whole, key=one.key)
        packed.produce(topics.events, b"z" * over, key=one.key, headers=[("ce_source", b"acme/sdk")])
        assert packed.flush(30) == 0
        topics.produce([one])
    async with running(topics, store) as worker:
        await until_async(lambda: topics.unread() == 0, "all committed")
        assert worker.status.ready()[0] and not worker.status.ready()[1]["stopped_partitions"]
    entries = await asyncio.to_thread(dlq.entries, topics.kafka)
    assert sorted((e.reason, len(e.value) == whole) for e in entries if not e.detail.startswith("cut")) == [
        *[("corrupt", True)] * 2,
        *[("framing", True)] * 3,
    ]
    cut = [e for e in entries if e.detail.startswith(f"cut: the record had {over} bytes")]
    assert len(cut) == len(run) and all(set(e.value) == {ord("z")} and len(e.value) > whole for e in cut)
    assert [(row["status"], row["revision"]) for row in store.trajectories()] == [("ended", len(run))]


async def test_a_row_whose_facts_no_message_can_hold_stops_nothing(topics: Topics, store: Store, tmp_path: Path) -> None:
    wide = [
        msgspec.structs.replace(one, policy=Policy(role=PolicyRole.TEACHER, model="big", version=f"{place}" * 30_000))
        for place, one in enumerate(trajectory(1, steps=60))
    ]
    topics.produce([*wide, *trajectory(2)])
    async with running(topics, store) as worker:
        await until_async(lambda: topics.unread() == 0, "all committed")
        counted = worker.status._instruments
    assert store.table_hash() == expected_hash(tmp_path / "expected", [*wide, *trajectory(2)])
    said = [codec.decode_any(m.value(), (TrajectoryFacts, Watermark)) for m in topics.read(TRAJECTORIES)]
    assert {f.key: len(f.policies) for f in said if isinstance(f, TrajectoryFacts)} == {"acme/t-1": 1, "acme/t-2": 1}
    assert len(store.trajectories("key = 'acme/t-1'")[0]["policies"]) > 30
    assert counted.value("stillhouse_ingest_facts_cut_total", how="cut") >= 1


async def test_a_schema_that_becomes_known_brings_its_dead_letters_back(topics: Topics, store: Store) -> None:
    newer = msgspec.json.decode(codec.schema_record(type(trajectory(1)[0]))[1])
    # A field of this test's own: a schema that was met once is known to the whole process from then on.
    newer["fields"].append({"name": f"added_in_{topics.kafka.prefix}", "type": "string", "default": ""})
    key, value = _record_of(newer)
    events = trajectory(1)
    for one in events:
        topics.raw(_written_with(newer, one), key=one.key)
    async with running(topics, store) as worker:
        chores = Chores(topics.kafka, store, worker.erasures, worker.schemas, worker.resolver, "test", lambda: 0)
        await until_async(lambda: len(dlq.entries(topics.kafka, reason="unknown_fingerprint")) == 5, "all in the DLQ")
        topics.raw(value, key=key, topic=topic_name(topics.kafka, SCHEMAS), source=None)
        await until_async(lambda: len(worker.schemas) == 1, "the schema is known")
        await asyncio.to_thread(chores.once)
        await until_async(lambda: bool(store.trajectories("status = 'ended'")), "the row")
    assert store.trajectories()[0]["revision"] == 5


def _record_of(schema: dict[str, object]) -> tuple[str, bytes]:
    return codec.fingerprint(schema).hex(), msgspec.json.encode(schema)


def _written_with(schema: dict[str, object], one: object) -> bytes:
    from io import BytesIO

    import fastavro

    from stillhouse.schemas.codec_records import event_to_record

    out = BytesIO()
    out.write(b"\xc3\x01" + codec.fingerprint(schema))
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), event_to_record(one) | {"added_later": "x"})  # type: ignore[arg-type]
    return out.getvalue()


async def test_a_bad_source_is_shut_out_and_the_others_go_on(topics: Topics, store: Store) -> None:
    for n in range(30):
        topics.raw(b"garbage", key=f"acme/{n}", source="acme/broken")
    topics.produce(trajectory(1))
    strict = msgspec.structs.replace(QUICK, dlq_minimum=10, dlq_window=600.0, fetch_records=10)
    async with running(topics, store, strict):
        await until_async(lambda: topics.unread() == 0, "all committed")
        good = trajectory(2)
        for one in good:
            topics.raw(codec.encode(one), key=one.key, source="acme/broken")
        topics.produce(trajectory(3))
        await until_async(lambda: topics.unread() == 0, "all committed")
    assert [row["key"] for row in store.trajectories()] == ["acme/t-1", "acme/t-3"]
    assert sum(entry.reason == "ratio_limit" for entry in await asyncio.to_thread(dlq.entries, topics.kafka)) >= 5


async def test_a_flood_without_a_source_stops_only_its_partition_and_says_so(topics: Topics, store: Store) -> None:
    for _ in range(30):
        topics.raw(b"garbage", key="acme/t-1", source=None)
    strict = msgspec.structs.replace(QUICK, dlq_minimum=10, fetch_records=10)
    async with running(topics, store, strict) as worker:
        await until_async(lambda: bool(worker.status.ready()[1]["stopped_partitions"]), "a stopped partition")
        assert not worker.status.ready()[0]
        runs = [trajectory(n) for n in range(2, 8)]
        topics.produce(e for run in runs for e in run)
        await until_async(lambda: bool(store.trajectories()), "rows of the other partition")
    stopped = worker.status.ready()[1]["stopped_partitions"]
    assert {row["partition"] for row in store.trajectories()}.isdisjoint(stopped)


async def test_flawed_runs_are_stored_and_flagged(topics: Topics, store: Store) -> None:
    no_family = trajectory(1, family=None)
    bad = TrajectoryStarted(tools=({"type": "function", "function": {"name": "f", "parameters": {"type": "nonsense"}}},))
    bad_tools = [event(bad, 2), *trajectory(2)[1:]]
    gap = [e for e in trajectory(3) if getattr(e.body, "index", None) != 1]
    twice = [*trajectory(4), event(step(1, 99), 4, at=50)]
    report = event(ClientReport(dropped={"too_large": 3}), 5)
    topics.produce([*no_family, *bad_tools, *gap, *twice, report])
    async with running(topics, store) as worker:
        await until_async(lambda: topics.unread() == 0, "all committed")
        counted = worker.status._instruments
    rows = {row["key"][-1]: row for row in store.trajectories()}
    assert (rows["1"]["family"], rows["1"]["status"]) == (None, "ended")
    assert (rows["2"]["valid_tools"], rows["2"]["status"]) == (False, "ended")
    assert (rows["3"]["status"], rows["3"]["status_reason"]) == ("incomplete", "step 1 of 3 missing")
    assert (rows["4"]["status"], rows["4"]["superseded"], rows["4"]["steps"]) == ("ended", 1, 3)
    assert "5" not in rows
    assert counted.value("stillhouse_ingest_client_dropped_total", reason="too_large") == 3
    assert counted.value("stillhouse_ingest_flagged_total", reason="invalid_tools") == 1


async def test_an_erased_subject_goes_and_does_not_come_back(topics: Topics, store: Store) -> None:
    events = [event(TrajectoryStarted(subject="s1", system_prompt="secret"), 1), *trajectory(1)[1:]]
    topics.produce([*events, *trajectory(2)])
    async with running(topics, store) as worker:
        await until_async(lambda: topics.unread() == 0, "all committed")
        erasure = codec.encode(Erasure(tenant="acme", subject="s1", requested_at=1))
        topics.raw(erasure, key="acme", topic=topic_name(topics.kafka, ERASURES), source=None)
        await until_async(lambda: bool(worker.erasures.fresh), "the erasure is read")
        chores = Chores(topics.kafka, store, worker.erasures, worker.schemas, worker.resolver, "test", lambda: 0)
        await asyncio.to_thread(chores.once)
        topics.produce([*events, event(step(7), 1, at=99)])
        await until_async(lambda: topics.unread() == 0, "the replay is committed")
    rows = {row["key"][-1]: row for row in store.trajectories()}
    assert (rows["1"]["status_reason"], rows["1"]["chunks"], rows["2"]["status"]) == ("erased", [], "ended")
    assert {row["trajectory"] for row in store.rows("transcripts", columns=["trajectory"])} == {"acme/t-2"}
    assert store.load(["acme/t-1"])["acme/t-1"].messages() == ()


async def test_two_workers_share_partitions_and_a_third_start_takes_them_over(
    make_topics: Callable[..., Topics], store: Store, tmp_path: Path
) -> None:
    topics = make_topics(partitions=4)
    runs = [trajectory(n, steps=6) for n in range(24)]
    events = [run[place] for place in range(8) for run in runs]
    patient = msgspec.structs.replace(QUICK, park_after=600.0)
    topics.produce(events[:100])
    async with running(topics, store, patient) as first:
        await until_async(lambda: sum(first.status.ready()[1]["positions"].values()) == 100, "all read")
        async with running(topics, store, patient, ordinal=1) as second:
            await until_async(lambda: len(second.status.ready()[1]["positions"]) == 2, "two partitions each")
            topics.produce(events[100:])
            await until_async(lambda: topics.unread() == 0, "all committed")
    assert store.table_hash() == expected_hash(tmp_path / "expected", events)
    assert not [m for m in topics.read(DLQ) if m.value()]


@pytest.mark.parametrize("setting", ["earliest", "latest"])
async def test_the_first_start_is_a_decision(topics: Topics, store: Store, setting: str) -> None:
    topics.produce(trajectory(1))
    chosen = msgspec.convert(msgspec.structs.asdict(QUICK) | {"first_start": setting}, type(QUICK))
    async with running(topics, store, chosen):
        topics.produce(trajectory(2))
        await until_async(lambda: topics.unread() == 0, "all committed")
    assert [row["key"] for row in store.trajectories()] == ["acme/t-1", "acme/t-2"][setting == "latest" :]
