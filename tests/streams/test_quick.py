"""The quick reader of steps accepts only what the codec makes of the same bytes, and nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from stillhouse.schemas import codec
from stillhouse.schemas.events import AgentEvent, Assignment, Policy, PolicyRole, StepTaken, Usage
from stillhouse.schemas.messages import Message, ToolCall
from stillhouse.streams.ingest.quick import step_event
from tests.support.events import event, step, trajectory

LONG = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1))
TEXT = st.text(max_size=200)
NAME = st.text(min_size=1, max_size=200)
MAYBE = st.one_of(st.none(), TEXT)
CALL = st.builds(ToolCall, id=TEXT, name=TEXT, arguments=st.dictionaries(TEXT, st.integers(-9, 9), max_size=2))
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
EVENTS = st.builds(
    AgentEvent,
    event_id=NAME,
    tenant=NAME,
    trajectory_id=NAME,
    occurred_at=st.integers(-(2**62), 2**62),
    body=STEPS,
    agent=TEXT,
    policy=st.builds(Policy, role=st.sampled_from(PolicyRole), model=TEXT, version=TEXT),
    traceparent=MAYBE,
)


@given(EVENTS)
def test_a_step_is_read_as_the_codec_reads_it(one: AgentEvent) -> None:
    data = codec.encode(one)
    assert step_event(data) == codec.decode(data, AgentEvent) == one


@given(EVENTS, st.data())
def test_damaged_bytes_are_never_taken_for_something_else(one: AgentEvent, data: st.DataObject) -> None:
    good = codec.encode(one)
    at = data.draw(st.integers(10, len(good) - 1))
    bad = data.draw(st.sampled_from([good[:at], good + b"\0", good[:at] + data.draw(st.binary(max_size=3)) + good[at + 1 :]]))
    found = step_event(bad)
    if found is not None:
        assert found == codec.decode(bad, AgentEvent)


def test_all_else_is_for_the_codec() -> None:
    start, *_, end = trajectory(1)
    assigned = AgentEvent(
        event_id="a",
        tenant="t",
        trajectory_id="t",
        occurred_at=1,
        body=step(0),
        assignment=Assignment(route="r", unit="u", experiment="e", arm="a", epoch=1),
    )
    for one in (start, end, assigned):
        assert step_event(codec.encode(one)) is None
    assert step_event(b"") is None
    assert step_event(codec.encode(event(step(0)), schema_id=7)) is None
    assert step_event(codec.encode(event(step(0)))) is not None
