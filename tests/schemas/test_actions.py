"""An action survives the way to text and back, and text that is no action is refused with a reason."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.schemas.actions import GRAMMARS, parse_action, unwritable, write_action
from stillhouse.schemas.errors import UsageError
from stillhouse.schemas.messages import Message, ToolCall

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=8,
)
_calls = st.lists(st.tuples(_text.filter(bool), st.dictionaries(_text, _json, max_size=3)), max_size=3)


def _message(content: str | None, calls: list[tuple[str, dict[str, object]]]) -> Message:
    return Message(
        role="assistant", content=content, tool_calls=tuple(ToolCall(id=f"c{i}", name=n, arguments=a) for i, (n, a) in enumerate(calls))
    )


def _plain(message: Message) -> tuple[str, list[tuple[str, dict[str, object]]]]:
    return message.text, [(c.name, c.arguments) for c in message.tool_calls]


@given(content=st.none() | _text, calls=_calls, grammar=st.sampled_from(GRAMMARS))
def test_what_is_writable_reads_back_as_the_same_action(
    content: str | None, calls: list[tuple[str, dict[str, object]]], grammar: str
) -> None:
    message = _message(content, calls)
    read, error = parse_action(write_action(message, grammar, reasoning=False), grammar, call_id_seed="s")
    if unwritable(message, grammar) is None:
        assert error is None
        assert _plain(read) == _plain(message)
    elif calls and not content:
        pytest.fail("calls alone are always writable")


@given(text=_text | st.from_regex(r'[a-z \n]{0,8}(<tool_call>)?\n?\{"name": ?"a", ?"arguments": ?\{"b": [0-9]\}\}(\n</tool_call>)?.{0,3}'))
def test_no_text_breaks_the_parser_or_loses_a_word(text: str) -> None:
    for grammar in GRAMMARS:
        message, error = parse_action(text, grammar, call_id_seed="s")
        if error:
            assert message.content == text
            assert not message.tool_calls
        elif not message.tool_calls:
            assert message.text == text


def test_the_demo_grammar_is_one_json_object_a_line() -> None:
    message = _message(None, [("cancel", {"id": "1234"}), ("track", {"id": "Zürich"})])
    assert write_action(message, "bare-json", reasoning=False) == (
        '{"name": "cancel", "arguments": {"id": "1234"}}\n{"name": "track", "arguments": {"id": "Zürich"}}'
    )
    assert write_action(_message("Done.", []), "bare-json", reasoning=False) == "Done."


def test_tags_enclose_each_call() -> None:
    text = write_action(_message("One moment.", [("a", {}), ("b", {"x": "</tool_call>"})]), "tool_call", reasoning=False)
    assert text == (
        'One moment.\n<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>\n'
        '<tool_call>\n{"name": "b", "arguments": {"x": "</tool_call>"}}\n</tool_call>'
    )
    assert _plain(parse_action(text, "tool_call", call_id_seed="s").message) == ("One moment.", [("a", {}), ("b", {"x": "</tool_call>"})])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ('{"name": "cancel", "arguments": {"id": "1"}', "not valid JSON"),
        ('{"name": "cancel"}', "exactly name and arguments"),
        ('{"name": "cancel", "arguments": {}, "id": 1}', "exactly name and arguments"),
        ('{"name": "cancel", "arguments": "{}"}', "must be an object"),
        ('{"name": "", "arguments": {}}', "non-empty"),
        ('{"name": 1, "arguments": {}}', "non-empty"),
        ('{"name": "a", "arguments": {"x": 1, "x": 2}}', "twice"),
        ('{"name": "a", "arguments": {"x": NaN}}', "NaN"),
        ('{"name": "a", "arguments": {"x": 1e999}}', "1e999"),
        ('{"name": "a", "arguments": {}} and then', "after the calls"),
        ('{"name": "a", "arguments": {}}\nand then', "not valid JSON"),
        ('{"tool": "a"}', "not a call"),
        ('{"name": "a", "arguments": ' + '{"x":' * 100_000, "nested too deeply"),
    ],
)
def test_bare_json_is_never_repaired(text: str, reason: str) -> None:
    message, error = parse_action(text, "bare-json", call_id_seed="s")
    assert error is not None
    assert reason in error
    assert message == Message(role="assistant", content=text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('<tool_call>\n{"name": "a", "arguments": {}}', "</tool_call> expected"),
        ('<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call> so', "after the calls"),
        ('{"name": "a", "arguments": {}}\n</tool_call>', "without <tool_call>"),
        ("<tool_call>\nnothing\n</tool_call>", "not valid JSON"),
        ('</tool_call><tool_call>{"name": "a", "arguments": {}}</tool_call>', "without <tool_call>"),
    ],
)
def test_tags_must_be_whole(text: str, reason: str) -> None:
    error = parse_action(text, "tool_call", call_id_seed="s").error
    assert error is not None
    assert reason in error


def test_ids_depend_on_the_seed_and_the_place_only() -> None:
    text = '{"name": "a", "arguments": {}}\n{"name": "a", "arguments": {}}'
    first, again, other = (parse_action(text, "bare-json", call_id_seed=s).message.tool_calls for s in ("r1", "r1", "r2"))
    assert first == again
    assert len({c.id for c in (*first, *other)}) == 4


def test_reasoning_is_hidden_or_said_before_the_content() -> None:
    message = Message(role="assistant", reasoning="It is late.", tool_calls=(ToolCall(id="c", name="track", arguments={"id": "1"}),))
    assert write_action(message, "bare-json", reasoning=False).startswith("{")
    shown = write_action(message, "bare-json", reasoning=True)
    assert shown.startswith("It is late.\n{")
    assert parse_action(shown, "bare-json", call_id_seed="s").message.content == "It is late."
    assert unwritable(message, "bare-json", reasoning=True) is None


def test_arguments_that_were_no_object_are_kept_as_context_and_refused_as_target() -> None:
    message = Message(role="assistant", tool_calls=(ToolCall(id="c", name="a", raw_arguments="{broken"),))
    assert json.loads(write_action(message, "bare-json", reasoning=False))["arguments"] == "{broken"
    assert "must be an object" in str(unwritable(message, "bare-json"))


def test_an_unknown_grammar_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="bare-json, tool_call"):
        parse_action("x", "xml", call_id_seed="s")
