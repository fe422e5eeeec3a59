"""The quick reader accepts only what the codec makes of the same bytes, and nothing else."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.schemas import codec, codec_schemas
from stillhouse.schemas.event_set import member, pack, unpack
from stillhouse.schemas.events import (
    AgentEvent,
    Assignment,
    ClientReport,
    FeedbackGiven,
    FeedbackSource,
    Outcome,
    Policy,
    PolicyRole,
    StepTaken,
    Task,
    TrajectoryEnded,
    TrajectoryStarted,
    Usage,
)
from stillhouse.schemas.messages import Message, ToolCall
from stillhouse.streams.ingest.quick import Layout, QuickReader
from stillhouse.streams.ingest.quick_code import kind_of, reader
from tests.support.events import event, step

LONG = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1))
TEXT = st.text(max_size=200)
NAME = st.text(min_size=1, max_size=200)
MAYBE = st.one_of(st.none(), TEXT)
NUMBER = st.one_of(st.integers(-9, 9), st.integers(-(10**25), 10**25), st.sampled_from([2**63, 2**64 - 1, 2**64, -(2**63) - 1]))
ARGUMENT = st.one_of(NUMBER, st.lists(NUMBER, max_size=2))
CALL = st.builds(ToolCall, id=TEXT, name=TEXT, arguments=st.dictionaries(TEXT, ARGUMENT, max_size=2))
MESSAGE = st.builds(
    Message, role=st.sampled_from(["user", "tool", "assistant"]), content=MAYBE, tool_calls=st.lists(CALL, max_size=2).map(tuple)
)
MESSAGES = st.lists(MESSAGE, max_size=2).map(tuple)
USAGE = st.builds(Usage, input_tokens=LONG, output_tokens=LONG, cached_tokens=LONG, reasoning_tokens=LONG)
STEPS = st.builds(
    StepTaken,
    action=MESSAGE,
    index=LONG,
    state=MESSAGES,
    observation=MESSAGES,
    usage=USAGE,
    cost_micro_usd=LONG,
    latency_ms=st.one_of(st.none(), st.floats(allow_nan=False)),
    error=MAYBE,
    logprobs=MAYBE,
)
REWARD = st.one_of(st.none(), st.floats(allow_nan=False))
TOOLS = st.lists(st.dictionaries(TEXT, TEXT, max_size=2), max_size=2).map(tuple)
STARTS = st.builds(
    TrajectoryStarted,
    task=st.builds(Task, id=MAYBE, family=MAYBE, instruction=MAYBE),
    system_prompt=MAYBE,
    tools=TOOLS,
    attempt=st.integers(-(2**63), 2**63 - 1),
    parent_trajectory=MAYBE,
    resume_step=LONG,
    environment=MAYBE,
    subject=MAYBE,
)
ENDS = st.builds(TrajectoryEnded, steps=LONG, outcome=st.sampled_from(Outcome), reward=REWARD, verifier=MAYBE)
FEEDBACK = st.builds(
    FeedbackGiven,
    source=st.sampled_from(FeedbackSource),
    source_version=TEXT,
    step=LONG,
    outcome=st.sampled_from(Outcome),
    reward=REWARD,
    label=MAYBE,
    revises=MAYBE,
    retracted=st.booleans(),
)
EVENTS = st.builds(
    AgentEvent,
    event_id=NAME,
    tenant=NAME,
    trajectory_id=NAME,
    occurred_at=st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(10**15, 2 * 10**15)),
    body=st.one_of(STEPS, STARTS, ENDS, FEEDBACK),
    agent=TEXT,
    policy=st.builds(Policy, role=st.sampled_from(PolicyRole), model=TEXT, version=TEXT),
    assignment=st.one_of(st.none(), st.builds(Assignment, route=TEXT, unit=TEXT, experiment=TEXT, arm=TEXT, epoch=st.integers(-9, 2**40))),
    traceparent=MAYBE,
)
QUICK = QuickReader()


@given(st.lists(EVENTS, min_size=1, max_size=4), st.booleans())
def test_an_event_is_read_as_the_codec_reads_it_whatever_its_record_key(events: list[AgentEvent], right: bool) -> None:
    for one in events:
        data = codec.encode(one)
        for _ in range(2):  # met, then remembered
            found = QUICK.read(data, one.key.encode() if right else b"the same for all")
            assert found == (one.key, one)
        kept = member(one)
        assert unpack(pack(one.key, [kept])[1]) == {kept.digest: kept}
        assert codec.decode(data, AgentEvent) == one


@given(EVENTS, st.data())
def test_damaged_bytes_are_never_taken_for_something_else(one: AgentEvent, data: st.DataObject) -> None:
    good, key = codec.encode(one), one.key.encode()
    at = data.draw(st.integers(10, len(good) - 1))
    bad = data.draw(st.sampled_from([good[:at], good + b"\0", good[:at] + data.draw(st.binary(max_size=3)) + good[at + 1 :]]))
    if data.draw(st.booleans()):
        QUICK.read(good, key)
    found = QUICK.read(bad, key)
    if found is not None:
        decoded = codec.decode(bad, AgentEvent)
        assert found == (decoded.key, decoded)


def test_no_byte_of_an_event_can_be_changed_into_what_only_the_quick_reader_takes() -> None:
    one = event(step(3), 1)
    good = codec.encode(one)
    for at in range(10, len(good)):
        for byte in (0, 1, 2, 3, 4, 0x7F, 0x80, 0xC3, 0xFF):
            bad = good[:at] + bytes([byte]) + good[at + 1 :]
            found = QUICK.read(bad, one.key.encode())
            if found is not None:
                assert found[1] == codec.decode(bad, AgentEvent)


def test_all_else_is_for_the_codec() -> None:
    assert QUICK.read(codec.encode(event(ClientReport(dropped={"queue full": 1}))), b"k") is None
    assert QUICK.read(b"", None) is None
    assert QUICK.read(codec.encode(event(step(0)), schema_id=7), b"k") is None
    assert QUICK.read(codec.encode(event(step(0))), None) is not None


def _changed(schema: Any, change: str) -> Any:
    fields = [dict(field) for field in schema["fields"]]
    if change == "envelope":
        fields.append({"name": "more", "type": "string", "default": ""})
    else:
        bodies = [dict(body) for body in fields[-1]["type"]]
        inner = [dict(field) for field in bodies[2]["fields"]]
        if change == "body":
            inner.append({"name": "more", "type": "string", "default": ""})
        else:
            inner[1]["type"] = inner[1]["type"] | {"symbols": ["success", "unknown", "failure", "aborted"]}
        bodies[2]["fields"] = inner
        fields[-1]["type"] = bodies
    return schema | {"fields": fields}


@pytest.mark.parametrize("change", ["envelope", "body", "symbols"])
def test_a_newer_release_with_another_layout_has_no_quick_way(change: str) -> None:
    schema = codec_schemas.newest("AgentEvent").schema
    Layout(schema)
    with pytest.raises(ValueError, match=r"another envelope|other (fields|symbols)"):
        Layout(_changed(schema, change))


@pytest.mark.parametrize("type_", [["null", "string", "long"], {"type": "map", "values": "long"}, "bytes"])
def test_what_there_is_no_code_for_is_refused(type_: object) -> None:
    with pytest.raises(ValueError, match=r"no reader|a union"):
        kind_of(type_)
    with pytest.raises(ValueError, match="no reader"):
        reader([("x", "map")], dict, {})
