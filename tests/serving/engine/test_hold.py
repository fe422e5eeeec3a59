"""What may be shown of an unfinished reply: only what stays true however it goes on."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stillhouse.schemas.actions import GRAMMARS, certain_text, parse_action
from stillhouse.serving.gateway.engine_reply import HELD_TOKENS, Written
from stillhouse.serving.gateway.engine_wire import Choice, Completion, Usage

CALL = '{"name": "a", "arguments": {}}'
PARTS = st.sampled_from(
    ["a", " ", "\n", "{", "<", "</", "<tool_call>", "</tool_call>", "<tool", CALL, f"<tool_call>\n{CALL}\n</tool_call>", "é"]
)


@given(parts=st.lists(PARTS, max_size=12), grammar=st.sampled_from(GRAMMARS))
@example(parts=["a", "\n", "\n", CALL], grammar="bare-json")
@example(parts=["a", "\n", f"<tool_call>\n{CALL}\n</tool_call>"], grammar="tool_call")
def test_what_was_shown_begins_the_content(parts: list[str], grammar: str) -> None:
    text, found = "", 0
    for character in "".join(parts):
        text += character
        after = certain_text(text, grammar, after=found)
        assert after == certain_text(text, grammar) >= found  # it only grows, and from anywhere
        found = after
    message, error = parse_action(text, grammar, call_id_seed="")
    if error is None:
        assert message.text.startswith(text[:found])
        assert message.tool_calls == () or len(message.text) == found  # of what is before a call all is shown


@pytest.mark.parametrize(
    ("text", "grammar", "certain"),
    [
        ("All done", "bare-json", "All done"),
        ("All done\n", "bare-json", "All done"),
        ("All done\n  {", "bare-json", "All done"),
        ("Use {x}", "bare-json", "Use {x}"),
        ("  {", "bare-json", ""),
        ("All done\n<tool", "tool_call", "All done"),
        ("1 < 2", "tool_call", "1 < 2"),
        ("1 <", "tool_call", "1 "),
        ("{", "tool_call", "{"),
        ("x</tool_call>y", "tool_call", "x"),
    ],
)
def test_a_possible_call_is_held(text: str, grammar: str, certain: str) -> None:
    assert text[: certain_text(text, grammar)] == certain


def chunk(text: str, tokens: int | None = 1, finish: str | None = None) -> Completion:
    return Completion(choices=[Choice(text=text, token_ids=None if tokens is None else [0] * tokens, finish_reason=finish)])


def test_nothing_is_shown_before_the_thirty_second_token() -> None:
    written = Written("bare-json")
    for _ in range(HELD_TOKENS - 1):
        written.take(chunk("a "))
        assert written.show() == ""
    written.take(chunk("b"))
    assert written.show() == "a " * (HELD_TOKENS - 1) + "b"
    written.take(chunk("c\n"))
    assert written.show() == "c"
    written.take(chunk("d", finish="stop"))
    assert (written.show(), written.finish, written.rest(written.text)) == ("\nd", "stop", "")


def test_chunks_of_many_tokens_count_as_many() -> None:
    written = Written("bare-json")
    written.take(chunk("a" * 40, HELD_TOKENS))
    assert written.show() == "a" * 40
    unnamed = Written("bare-json")
    unnamed.take(chunk("a" * 40, None))
    assert unnamed.show() == ""


def test_the_engines_own_count_goes_before_ours() -> None:
    written = Written("bare-json")
    written.take(chunk("Bye.", finish="stop"))
    assert written.output_tokens == 2  # the token that ended the turn has no text
    written.take(Completion(usage=Usage(prompt_tokens=3, completion_tokens=9)))
    assert written.output_tokens == 9
