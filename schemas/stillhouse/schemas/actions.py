"""Action grammars: one assistant message as the text a student writes, and that text back as a message.

`write_action` is total, because a conversation may hold any reply, malformed ones included. `parse_action` is strict: it
loses nothing or says why it cannot read the text, and never repairs JSON (a repaired call would hide a format error).
`unwritable` says whether a message survives the way there and back: only such a message may be a training target.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from stillhouse.schemas.errors import UsageError
from stillhouse.schemas.messages import Message, ToolCall

Grammar = Literal["bare-json", "tool_call"]
GRAMMARS: tuple[Grammar, ...] = ("bare-json", "tool_call")
_CALL_LINE = re.compile(r'^[ \t]*(?=\{\s*"name"\s*:)', re.MULTILINE)
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
# Where a call may begin, with the line break before it; at the end of a text its beginning may have come.
_MAYBE_CALL_LINE = re.compile(r"(?:\A\s*|\n[ \t]*)(?:\{|\Z)")
_TAG_BEGINNINGS = "|".join(re.escape(tag[:n]) for n in range(len(_CLOSE), -1, -1) for tag in (_OPEN, _CLOSE))
_MAYBE_TAG = re.compile(rf"\n?(?:{_OPEN}|{_CLOSE}|(?:{_TAG_BEGINNINGS})\Z)")


class ParsedAction(NamedTuple):
    """What was read. With an `error` (one sentence) the message carries the whole text as its content."""

    message: Message
    error: str | None


class _Unreadable(ValueError):
    """The text is not an action of the grammar; the argument says why."""


def write_action(message: Message, grammar: str, *, reasoning: bool) -> str:
    """The text of an assistant message, without the end-of-turn token.

    Args:
        message: the assistant's message.
        grammar: `bare-json` (one call a line) or `tool_call` (each call between tags).
        reasoning: write the message's reasoning before its content, as content.

    Raises:
        UsageError: there is no such grammar.
    """
    said = [message.reasoning] if reasoning and message.reasoning else []
    said += [message.text] if message.text else []
    calls = [_call_text(c) for c in message.tool_calls]
    if _known(grammar) == "tool_call":
        calls = [f"{_OPEN}\n{c}\n{_CLOSE}" for c in calls]
    return "\n".join([*said, *calls])


def parse_action(text: str, grammar: str, *, call_id_seed: str) -> ParsedAction:
    """The message that a student's text stands for.

    Args:
        text: what the student wrote, without the end-of-turn token.
        grammar: the grammar that the student was trained on.
        call_id_seed: the ids of the calls are a hash of it and their place, so the same reply has the same ids.

    Returns:
        the message, and the reason when the text is not of the grammar.

    Raises:
        UsageError: there is no such grammar.
    """
    scan = _scan_tags if _known(grammar) == "tool_call" else _scan_lines
    try:
        said, calls = scan(text)
        if not calls and not text.strip():
            raise _Unreadable("the reply is empty")
    except _Unreadable as unreadable:
        return ParsedAction(Message(role="assistant", content=text), str(unreadable))
    numbered = tuple(ToolCall(id=_call_id(call_id_seed, i), name=name, arguments=arguments) for i, (name, arguments) in enumerate(calls))
    return ParsedAction(Message(role="assistant", content=said, tool_calls=numbered), None)


def certain_text(text: str, grammar: str, *, after: int = 0) -> int:
    """How many characters of an unfinished reply are the message's content whatever follows: the rest may turn out to be a call.

    It only grows with the text, so a stream can show what lies before it.

    Args:
        text: what the student wrote so far.
        grammar: the grammar that the student was trained on.
        after: how many were found before, for the beginning of the same text.

    Raises:
        UsageError: there is no such grammar.
    """
    found = (_MAYBE_TAG if _known(grammar) == "tool_call" else _MAYBE_CALL_LINE).search(text, after)
    return found.start() if found else len(text)


def unwritable(message: Message, grammar: str, *, reasoning: bool = False) -> str | None:
    """Why the message would not be read back as what it is; None when it would.

    Raises:
        UsageError: there is no such grammar.
    """
    text = write_action(message, grammar, reasoning=reasoning)
    read, error = parse_action(text, grammar, call_id_seed="")
    if error:
        return error
    if _shape(read) != _shape(message) or (read.text if reasoning and message.reasoning else message.text) != read.text:
        return f"the text does not read back as the same action in the grammar {grammar}"
    return None


def _known(grammar: str) -> str:
    if grammar not in GRAMMARS:
        raise UsageError(f"no action grammar {grammar!r}", fix=f"Use one of: {', '.join(GRAMMARS)}.")
    return grammar


def _shape(message: Message) -> list[tuple[str, str]]:
    return [(c.name, _json(c.arguments if c.raw_arguments is None else c.raw_arguments)) for c in message.tool_calls]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _call_text(call: ToolCall) -> str:
    arguments = call.arguments if call.raw_arguments is None else call.raw_arguments
    return f'{{"name": {_json(call.name)}, "arguments": {_json(arguments)}}}'


def _call_id(seed: str, place: int) -> str:
    return f"call_{hashlib.sha256(f'{seed}/{place}'.encode()).hexdigest()[:24]}"


_Calls = list[tuple[str, dict[str, Any]]]


def _scan_lines(text: str) -> tuple[str | None, _Calls]:
    """Text up to the first line that begins a call, then nothing but calls, each on a new line."""
    first = _CALL_LINE.search(text)
    if first is None:
        if text.lstrip().startswith("{"):
            raise _Unreadable("a JSON object that is not a call: it must begin with its name")
        return text or None, []
    calls, at = _scan_calls(text, first.end(), _next_line)
    if text[at:].strip():
        raise _Unreadable("text after the calls")
    return _before(text, first.start()), calls


def _scan_tags(text: str) -> tuple[str | None, _Calls]:
    """Text up to the first opening tag, then nothing but calls between tags."""
    first = text.find(_OPEN)
    if first < 0:
        if _CLOSE in text:
            raise _Unreadable(f"{_CLOSE} without {_OPEN}")
        return text or None, []
    if _CLOSE in text[:first]:
        raise _Unreadable(f"{_CLOSE} without {_OPEN}")
    calls, at = _scan_calls(text, _past(text, first, _OPEN), _next_tag)
    if text[at:].strip():
        raise _Unreadable("text after the calls")
    return _before(text, first), calls


def _scan_calls(text: str, at: int, following: Callable[[str, int], tuple[int, int | None]]) -> tuple[_Calls, int]:
    """Calls from `at`. `following` closes the one that ended there, and says where the next begins (None: no more)."""
    calls: _Calls = []
    begin: int | None = at
    while begin is not None:
        call, at = _read_call(text, begin)
        calls.append(call)
        at, begin = following(text, at)
    return calls, at


def _next_line(text: str, at: int) -> tuple[int, int | None]:
    gap = re.compile(r"[ \t]*\n\s*").match(text, at)
    if gap is None or gap.end() == len(text):
        return at, None
    return gap.end(), gap.end()


def _next_tag(text: str, at: int) -> tuple[int, int | None]:
    at = _past(text, _skip_space(text, at), _CLOSE)
    following = _skip_space(text, at)
    return (at, _past(text, following, _OPEN)) if text.startswith(_OPEN, following) else (at, None)


def _skip_space(text: str, at: int) -> int:
    return len(text) - len(text[at:].lstrip())


def _past(text: str, at: int, tag: str) -> int:
    if not text.startswith(tag, at):
        raise _Unreadable(f"{tag} expected after a call")
    return _skip_space(text, at + len(tag))


def _before(text: str, at: int) -> str | None:
    """What was said before the calls; the line break that parts the two belongs to neither."""
    return text[:at].removesuffix("\n") or None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Unreadable("a key appears twice in one JSON object")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _Unreadable(f"{text} is not a JSON number that can be kept")
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)


def _read_call(text: str, at: int) -> tuple[tuple[str, dict[str, Any]], int]:
    try:
        call, end = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise _Unreadable(f"a call is not valid JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise _Unreadable("a call is nested too deeply") from None
    if not isinstance(call, dict) or set(call) != {"name", "arguments"}:
        raise _Unreadable("a call must be an object with exactly name and arguments")
    name, arguments = call["name"], call["arguments"]
    if not isinstance(name, str) or not name:
        raise _Unreadable("the name of a call must be a non-empty string")
    if not isinstance(arguments, dict):
        raise _Unreadable("the arguments of a call must be an object")
    return (name, arguments), end
