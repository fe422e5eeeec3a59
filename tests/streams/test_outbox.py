"""What ingest sends, and what it makes of a broker that will never take it: told at once, and not tried for ever."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    NotLeaderForPartitionError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # its stubs leave these out
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.schemas import codec
from stillhouse.schemas.errors import PermanentError, RetryableError, UnreachableError
from stillhouse.schemas.events import Assignment, Outcome, Policy, PolicyRole
from stillhouse.schemas.facts import TrajectoryFacts, Watermark
from stillhouse.schemas.topics import DLQ, DLQ_MAX_BYTES, EVENT_MAX_BYTES, TRAJECTORIES
from stillhouse.sdk.kafka import KafkaSettings, apply_topics, topic_name
from stillhouse.streams import dlq
from stillhouse.streams.ingest.facts_fit import message_of
from stillhouse.streams.ingest.letters import letter_of
from stillhouse.streams.ingest.outbox import Outbox
from stillhouse.streams.ingest.records import Rejected
from stillhouse.streams.instruments import Instruments
from tests.support.ingest import Topics


@dataclass
class Read:
    """A record as ingest reads it."""

    value: bytes | None
    key: bytes | None = b"acme/x"
    headers: tuple[tuple[str, bytes | None], ...] = (("ce_source", b"acme/sdk"),)
    topic: str = "agent.events"
    partition: int = 0
    offset: int = 0
    timestamp: int = 0


def rejected(**values: Any) -> Rejected:
    return Rejected(Read(**values), "acme/sdk", "decode", "not_avro", "why")


MARK = Watermark(partition=0, watermark=1, position=1, committed=1, worker="w")


async def test_records_that_no_dead_letter_can_hold_are_cut_counted_and_keep_their_place(topics: Topics) -> None:
    instruments = Instruments("stillhouse_ingest_")
    outbox = Outbox(topics.kafka, instruments)
    await outbox.start()
    try:
        large = b"x" * 5_000_000
        await outbox.dead_letters(
            [
                rejected(value=b"small", offset=1),
                rejected(value=large, offset=2),
                rejected(value=b"v", headers=(("ce_source", b"acme/sdk"), ("h", large)), offset=3),
                rejected(value=large, key=large, offset=4),
                rejected(value=None, offset=5),
            ]
        )
    finally:
        await outbox.stop()
    found = {int(entry.key.rsplit("/", 1)[1]): entry for entry in dlq.entries(topics.kafka)}
    assert {(entry.stage, entry.reason) for entry in found.values()} == {("decode", "not_avro")} and sorted(found) == [1, 2, 3, 4, 5]
    assert (found[1].value, found[1].detail, found[1].source_key) == (b"small", "why", b"acme/x")
    assert set(found[2].value) == set(b"x") and len(found[2].value) > 1_000_000 and found[2].source == "acme/sdk"
    assert found[2].detail.startswith("cut: the record had 5000000 bytes") and found[2].detail.endswith("why")
    assert found[3].value == b"v" and "h" not in dict(found[3].headers) and found[3].source_key == b"acme/x"
    assert found[4].source_key is None
    assert instruments.value("stillhouse_ingest_dlq_cut_total") == 3


@given(
    st.none() | st.integers(0, 2 * DLQ_MAX_BYTES),
    st.none() | st.integers(0, 2 * DLQ_MAX_BYTES),
    st.lists(st.none() | st.integers(0, DLQ_MAX_BYTES), max_size=3),
)
def test_every_dead_letter_fits_and_is_whole_where_it_can_be(value: int | None, key: int | None, headers: list[int | None]) -> None:
    def some(size: int | None) -> bytes | None:
        return None if size is None else b"x" * size

    one = rejected(value=some(value), key=some(key), headers=tuple((f"h{n}", some(size)) for n, size in enumerate(headers)))
    letter = letter_of(one)
    size = len(letter.key) + len(letter.value or b"") + sum(len(name) + len(v or b"") for name, v in letter.headers)
    assert size < DLQ_MAX_BYTES
    whole = (letter.value or b"") == (one.record.value or b"") and {*one.record.headers} <= {*letter.headers}
    assert letter.cut or whole
    assert (value or 0) + (key or 0) + sum(n or 0 for n in headers) > DLQ_MAX_BYTES - 10_000 or not letter.cut


def facts(key: str = "acme/t", **more: Any) -> TrajectoryFacts:
    tenant, _, trajectory_id = key.partition("/")
    fixed: dict[str, Any] = {"revision": 1, "content": "c" * 64, "status": "ended", "outcome": Outcome.SUCCESS, "family": "refund"}
    return TrajectoryFacts(key=key, tenant=tenant, trajectory_id=trajectory_id, **(fixed | more))


ROLES = (PolicyRole.TEACHER, PolicyRole.STUDENT)
MANY = tuple(Policy(role=ROLES[n % 2], model="m", version=f"{n}" * 5000) for n in range(200))


@given(
    st.integers(0, 2 * EVENT_MAX_BYTES), st.integers(0, 2 * EVENT_MAX_BYTES), st.sampled_from([0, 3, 4097, 2 * EVENT_MAX_BYTES]),
    st.sampled_from([(), MANY[:3], MANY]), st.booleans(),
)  # fmt: skip
def test_facts_fit_into_a_message_and_keep_what_readers_go_by(
    family: int, subject: int, unit: int, policies: tuple[Policy, ...], assigned: bool
) -> None:
    assignment = Assignment(route="r", unit="u" * unit, experiment="e", arm="student", epoch=3) if assigned else None
    one = facts(family="f" * family, subject="s" * subject, policies=policies, assignment=assignment, reward=1.0)
    key, value, cut = message_of(one)
    said = codec.decode(value, TrajectoryFacts)
    assert len(key) + len(value) < EVENT_MAX_BYTES and cut != "withheld" and message_of(one) == (key, value, cut)
    assert cut or said == one
    assert {p.role for p in said.policies} == {p.role for p in policies} and (said.reward, said.revision) == (1.0, 1)
    assert said.assignment in (assignment, None) and said.family in (one.family, None) and said.subject in (one.subject, None)
    if max(unit, family, subject) <= 4096:
        assert (said.assignment, said.family, said.subject) == (assignment, one.family, one.subject)


async def test_facts_that_no_message_can_hold_are_cut_or_left_to_the_row_and_the_others_go_out(topics: Topics) -> None:
    instruments = Instruments("stillhouse_ingest_")
    outbox = Outbox(topics.kafka, instruments)
    await outbox.start()
    try:
        await outbox.facts([facts("acme/a"), facts("acme/wide", policies=MANY), facts(f"acme/{'n' * 700_000}"), facts("acme/z")])
    finally:
        await outbox.stop()
    found = {one.key: one for one in (codec.decode(m.value(), TrajectoryFacts) for m in topics.read(TRAJECTORIES))}
    assert found.keys() == {"acme/a", "acme/wide", "acme/z"}
    assert [p.role for p in found["acme/wide"].policies] == list(ROLES) and found["acme/wide"].family == "refund"
    assert [instruments.value("stillhouse_ingest_facts_cut_total", how=how) for how in ("cut", "withheld")] == [1, 1]


@pytest.mark.parametrize("absent", [DLQ, TRAJECTORIES])
async def test_a_missing_topic_is_told_at_the_start(absent: str, bootstrap: str) -> None:
    kafka = KafkaSettings(bootstrap_servers=bootstrap, prefix=f"t{uuid4().hex[:10]}")
    present = topic_name(kafka, TRAJECTORIES if absent == DLQ else DLQ)
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(present, num_partitions=1, replication_factor=1)])[present].result(30)
    outbox = Outbox(kafka)
    with pytest.raises(PermanentError, match=topic_name(kafka, absent)) as told:
        await outbox.start()
    await outbox.stop()
    assert "stillhouse topics apply" in str(told.value) and present not in str(told.value)


async def test_what_the_topic_never_takes_is_not_tried_for_ever(bootstrap: str) -> None:
    kafka = KafkaSettings(bootstrap_servers=bootstrap, prefix=f"t{uuid4().hex[:10]}", partitions=1)
    name, config = topic_name(kafka, DLQ), {"max.message.bytes": "2000"}
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(name, num_partitions=1, replication_factor=1, config=config)])[name].result(30)
    apply_topics(kafka)
    outbox = Outbox(kafka)
    await outbox.start()
    try:
        with pytest.raises(PermanentError, match="MessageSizeTooLarge") as told:
            await outbox.dead_letters([rejected(value=b"x" * 100_000)])
        assert "stillhouse topics apply" in str(told.value)
        await outbox.watermarks([MARK])
    finally:
        await outbox.stop()


@pytest.mark.parametrize(
    ("error", "there", "wanted"),
    [
        (MessageSizeTooLargeError(), True, PermanentError),
        (TopicAuthorizationFailedError("t"), True, PermanentError),
        (UnknownTopicOrPartitionError(), False, PermanentError),
        (KafkaTimeoutError(), False, PermanentError),  # so the client ends its own attempts at a topic that was deleted
        (UnknownTopicOrPartitionError(), True, UnreachableError),
        (UnknownTopicOrPartitionError(), None, UnreachableError),
        (KafkaTimeoutError(), None, UnreachableError),
        (NotLeaderForPartitionError(), False, UnreachableError),
        (KafkaConnectionError(), False, UnreachableError),
        (OSError(), False, UnreachableError),
    ],
)
async def test_only_what_waiting_can_mend_is_waited_for(error: Exception, there: bool | None, wanted: type[Exception]) -> None:
    """`there`: whether the topic is; None for a broker that does not say."""
    kafka = KafkaSettings(bootstrap_servers="nowhere:1")

    async def send(*_: Any, **__: Any) -> None:
        raise error

    async def fetch_all_metadata() -> Any:
        if there is None:
            raise KafkaError("nobody answers")
        return SimpleNamespace(topics=lambda: {TRAJECTORIES} if there else set())

    outbox = Outbox(kafka)
    outbox._producer = SimpleNamespace(send=send, client=SimpleNamespace(fetch_all_metadata=fetch_all_metadata))
    with pytest.raises(wanted) as told:
        await outbox.watermarks([MARK])
    assert isinstance(told.value, RetryableError) == (wanted is UnreachableError)
