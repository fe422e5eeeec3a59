"""The OpenAI wire, both ways."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.messages import Message, ToolCall, decode_messages, encode_messages
from stillhouse.schemas.openai import arguments_from_text, from_openai, message_from_openai, to_openai

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
JSON: st.SearchStrategy[Any] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)
OBJECT = st.dictionaries(TEXT, JSON, max_size=3)
EXTRA = st.dictionaries(st.sampled_from(["refusal", "annotations", "audio", "x_new", "reasoning_details"]), JSON, max_size=2)
PARTS = st.lists(
    st.fixed_dictionaries({"type": st.just("text"), "text": TEXT})
    | st.fixed_dictionaries({"type": st.just("image_url"), "image_url": OBJECT})
)
NOT_OBJECTS = st.sampled_from(['{"a": ', "[1]", "null", "3", '"x"', "{'a': 1}", '{"a": 1} tail', '{"a": 1e999}', '{"a": NaN}'])

CALLS = st.lists(
    st.builds(ToolCall, id=TEXT, name=TEXT, arguments=OBJECT, extra=st.dictionaries(st.just("index"), st.integers(0, 9)))
    | st.builds(ToolCall, id=TEXT, name=TEXT, raw_arguments=NOT_OBJECTS)
    | st.builds(ToolCall, id=TEXT, name=TEXT, raw_arguments=TEXT, extra=st.just({"type": "custom"})),
    max_size=3,
).map(tuple)
MESSAGES = st.lists(
    st.builds(
        Message,
        role=st.sampled_from(["system", "user", "assistant", "tool"]),
        content=st.none() | TEXT | PARTS,
        reasoning=st.none() | TEXT,
        tool_calls=CALLS,
        tool_call_id=st.none() | TEXT,
        name=st.none() | TEXT,
        extra=EXTRA,
    ),
    max_size=3,
).map(tuple)


@given(MESSAGES)
def test_canonical_to_wire_and_back(messages: tuple[Message, ...]) -> None:
    wire = json.loads(json.dumps(to_openai(messages)))
    assert from_openai(wire) == messages


@given(MESSAGES)
def test_canonical_messages_survive_the_string_inside_events(messages: tuple[Message, ...]) -> None:
    assert decode_messages(encode_messages(messages)) == messages


@st.composite
def wire_messages(draw: st.DrawFn) -> dict[str, Any]:
    wire: dict[str, Any] = {"role": draw(st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"]))}
    wire["content"] = draw(st.none() | TEXT | PARTS)
    for name in draw(st.sets(st.sampled_from(["name", "tool_call_id", "reasoning_content"]))):
        wire[name] = draw(TEXT)
    calls = draw(st.lists(OBJECT.map(json.dumps) | OBJECT.map(lambda o: json.dumps(o, indent=1)) | NOT_OBJECTS, max_size=2))
    if calls:
        wire["tool_calls"] = [
            {"id": draw(TEXT), "type": "function", "function": {"name": draw(TEXT), "arguments": text}} | draw(EXTRA) for text in calls
        ]
    return wire | draw(EXTRA)


def _readable(wire: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Arguments as objects where they are: the spacing of JSON is not part of the promise."""
    copy: list[dict[str, Any]] = json.loads(json.dumps(wire))
    for message in copy:
        for call in message.get("tool_calls", ()):
            arguments, raw = arguments_from_text(call["function"]["arguments"])
            call["function"]["arguments"] = arguments if raw is None else raw
    return copy


@given(st.lists(wire_messages(), max_size=3))
def test_wire_to_canonical_and_back(wire: list[dict[str, Any]]) -> None:
    assert _readable(to_openai(from_openai(wire))) == _readable(wire)


@pytest.mark.parametrize("text", ['{"a": ', "[1]", "{'a': 1}", '{"a": 1e999}', "  null "])
def test_arguments_that_are_no_object_stay_as_written(text: str) -> None:
    wire = {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": text}}]}
    call = message_from_openai(wire).tool_calls[0]
    assert (call.arguments, call.raw_arguments) == ({}, text)
    assert to_openai([message_from_openai(wire)])[0]["tool_calls"][0]["function"]["arguments"] == text


@pytest.mark.parametrize("text", ["", "  ", None, "{}"])
def test_a_call_without_arguments_has_an_empty_object(text: str | None) -> None:
    assert arguments_from_text(text) == ({}, None)


@pytest.mark.parametrize(
    ("wire", "reasoning", "extra"),
    [
        ({"reasoning": "a"}, "a", {}),
        ({"reasoning_content": "a"}, "a", {}),
        ({"reasoning_content": "a", "reasoning": "a"}, "a", {}),
        ({"reasoning_content": "a", "reasoning": "b"}, "a", {"reasoning": "b"}),
        ({"reasoning_content": None, "reasoning": "b"}, "b", {}),
        ({"reasoning_content": None}, None, {}),
        ({"reasoning": {"effort": "high"}}, None, {"reasoning": {"effort": "high"}}),
    ],
)
def test_spellings_of_reasoning(wire: dict[str, Any], reasoning: str | None, extra: dict[str, Any]) -> None:
    message = message_from_openai({"role": "assistant", "content": None} | wire)
    assert (message.reasoning, message.extra) == (reasoning, extra)


def test_bare_strings_among_parts_become_text_parts() -> None:
    assert message_from_openai({"role": "user", "content": ["a", {"type": "text", "text": "b"}]}).text == "ab"


@pytest.mark.parametrize(
    ("wire", "said"),
    [
        ([{"role": "robot"}], "unknown role 'robot'"),
        ([{"role": "user"}, "text"], "messages[1]"),
        ([{"role": "user", "content": 3}], "content must be"),
        ([{"role": "user", "content": [3]}], "content must be"),
        ([{"role": "user", "name": 3}], "name must be text"),
        ([{"role": "assistant", "tool_calls": "x"}], "tool_calls must be a list"),
        ([{"role": "assistant", "tool_calls": [{}]}], "messages[0].tool_calls[0]"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], "function name"),
    ],
)
def test_what_is_no_message_is_refused_by_place(wire: list[Any], said: str) -> None:
    with pytest.raises(PermanentError) as error:
        from_openai(wire)
    assert said in str(error.value)
