"""What an agent may pass, and the canonical event it becomes."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.schemas.events import AgentEvent, Policy, PolicyRole, StepTaken, Task, TrajectoryEnded, Usage
from stillhouse.schemas.messages import Message, ToolCall
from stillhouse.schemas.openai import to_openai
from stillhouse.sdk.handover import Draft, snapshot
from stillhouse.sdk.normalise import ToolResult, event_from_snapshot, task_from, usage_from

CALLS = (ToolCall(id="c1", name="find", arguments={"q": 1}), ToolCall(id="c2", name="open", arguments={}))
ASKS = Message(role="assistant", content=None, tool_calls=CALLS[:1])
ASKS_TWICE = Message(role="assistant", tool_calls=CALLS)


def through(draft: Draft | AgentEvent) -> AgentEvent:
    return event_from_snapshot(snapshot(draft), tenant="t", agent="a", policy=Policy(model="m"))


def step(**fields: Any) -> StepTaken:
    body = through(Draft("step", "e", "r", 1, {"action": "x", **fields})).body
    assert isinstance(body, StepTaken)
    return body


class Pydantic:
    """As the openai client's objects: they say what they are by model_dump."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields

    def model_dump(self) -> dict[str, Any]:
        return self.fields


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(st.text(max_size=5), json_values, max_size=3)
calls = st.builds(ToolCall, id=st.text(max_size=5), name=st.text(max_size=5), arguments=objects)
actions = st.builds(
    Message,
    role=st.just("assistant"),
    content=st.none() | st.text(max_size=20) | st.lists(objects, max_size=2),
    reasoning=st.none() | st.text(max_size=9),
    tool_calls=st.lists(calls, max_size=2).map(tuple),
    name=st.none() | st.text(max_size=5),
    extra=st.dictionaries(st.sampled_from(["refusal", "audio"]), json_values, max_size=2),
)


@given(actions, st.lists(st.text(max_size=9), max_size=3))
def test_a_canonical_message_stays_as_it_is(action: Message, texts: list[str]) -> None:
    said = [Message(role="user", content=text) for text in texts]
    body = step(action=action, state=said, observation=said)
    assert body.action == action and body.state == body.observation == tuple(said)


@given(actions.filter(lambda m: not m.extra))
def test_openais_form_becomes_the_same(action: Message) -> None:
    (wire,) = to_openai([action])
    assert step(action=wire).action == step(action=Pydantic(**wire)).action == action


def test_an_action_may_be_calls_alone() -> None:
    assert step(action=CALLS[0]).action == ASKS
    assert step(action=list(CALLS)).action == ASKS_TWICE


def tool(content: str, call: ToolCall) -> Message:
    return Message(role="tool", content=content, tool_call_id=call.id, name=call.name)


@pytest.mark.parametrize(
    ("action", "observation", "expected"),
    [
        (ASKS, None, ()),
        (ASKS, [], ()),
        (ASKS, "done", (tool("done", CALLS[0]),)),
        (ASKS, {"rows": [1]}, (tool('{"rows":[1]}', CALLS[0]),)),
        (ASKS, [1, 2], (tool("[1,2]", CALLS[0]),)),
        (ASKS, ["a", "b"], (tool('["a","b"]', CALLS[0]),)),
        (ASKS, [{"a": 1}], (tool('[{"a":1}]', CALLS[0]),)),
        (ASKS, ["done"], (tool("done", CALLS[0]),)),
        (ASKS, 3.5, (tool("3.5", CALLS[0]),)),
        (ASKS_TWICE, ["one", {"two": 2}], (tool("one", CALLS[0]), tool('{"two":2}', CALLS[1]))),
        (ASKS_TWICE, ["one"], (tool("one", CALLS[0]),)),
        (ASKS_TWICE, "one", (tool("one", CALLS[0]),)),
        (ASKS_TWICE, [{"a": 1}, {"b": 2}, {"c": 3}], (tool('[{"a":1},{"b":2},{"c":3}]', CALLS[0]),)),
        ("hello", "and you?", (Message(role="user", content="and you?"),)),
        (ASKS, ToolResult(call_id="c9", result={"x": 1}), (Message(role="tool", content='{"x":1}', tool_call_id="c9"),)),
        (ASKS, {"role": "tool", "tool_call_id": "c1", "content": "x"}, (Message(role="tool", content="x", tool_call_id="c1"),)),
        (ASKS, [ToolResult(call_id="c1", result="x"), Message(role="user", content="y")],
         (Message(role="tool", content="x", tool_call_id="c1"), Message(role="user", content="y"))),
    ],
)  # fmt: skip
def test_what_answered(action: Any, observation: Any, expected: tuple[Message, ...]) -> None:
    assert step(action=action, observation=observation).observation == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (None, Usage()),
        (Usage(input_tokens=3, reasoning_tokens=0), Usage(input_tokens=3, reasoning_tokens=0)),
        ({"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}, Usage(input_tokens=5, output_tokens=6)),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": {"reasoning_tokens": 1}},
         Usage(input_tokens=5, cached_tokens=2, reasoning_tokens=1)),
        ({"input_tokens": 5, "input_tokens_details": {"cached_tokens": 4}, "output_tokens_details": None},
         Usage(input_tokens=5, cached_tokens=4)),
    ],
)  # fmt: skip
def test_usage_by_any_of_its_names(raw: Any, expected: Usage) -> None:
    assert step(usage=raw).usage == expected
    assert usage_from(msgspec.to_builtins(raw)) == expected


def test_a_task_may_be_a_text_an_object_or_nothing() -> None:
    assert task_from("do it", "f") == Task(instruction="do it", family="f")
    assert task_from({"id": 7, "family": "own"}, "f") == Task(id="7", family="own")
    assert task_from({"instruction": "x"}, "f") == Task(instruction="x", family="f")
    assert task_from(None, None) == Task()


def test_the_envelope_is_the_clients_unless_the_event_says_otherwise() -> None:
    human = Policy(role=PolicyRole.HUMAN, model="", version="")
    plain = through(Draft("end", "e", "r", 5, {"outcome": True, "traceparent": "00-1"}))
    assert (plain.tenant, plain.agent, plain.policy, plain.occurred_at) == ("t", "a", Policy(model="m"), 5)
    assert plain.traceparent == "00-1" and through(Draft("end", "e", "r", 5, {}, human)).policy == human
    whole = AgentEvent(event_id="x", tenant="other", trajectory_id="r", occurred_at=9, body=TrajectoryEnded(reward=0.5))
    assert through(whole) == whole


@pytest.mark.parametrize("surrogate", ["\ud800", "a\udfffb", "\ud83d\ude00"])
def test_surrogates_become_what_utf8_can_hold(surrogate: str) -> None:
    body = step(action=surrogate, observation={surrogate: [surrogate]})
    assert "\ufffd" in body.action.text or body.action.text == "😀"
