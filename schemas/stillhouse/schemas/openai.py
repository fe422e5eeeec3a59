"""Between canonical messages and the OpenAI chat wire, both ways and without loss.

What the canonical form has no field for stays in `extra` and goes back out; arguments that are no JSON object stay as they were written.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.messages import Message, Role, ToolCall

Wire = dict[str, Any]

# Roles of the wire that mean one of ours; `extra["role"]` keeps the spelling.
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_REASONING = ("reasoning_content", "reasoning")
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


def to_openai(messages: Iterable[Message]) -> list[Wire]:
    """Messages as the wire has them: arguments as JSON text, reasoning as `reasoning_content`, unknown fields back in their places."""
    return [message_to_openai(message) for message in messages]


def from_openai(messages: Sequence[Wire]) -> tuple[Message, ...]:
    """The inverse of `to_openai`; takes what any OpenAI-compatible client or server writes.

    Raises:
        PermanentError: one of them is no chat message (the message says which).
    """
    return tuple(_located(message, f"messages[{place}]") for place, message in enumerate(messages))


def message_to_openai(message: Message) -> Wire:
    """One message as the wire has it."""
    wire: Wire = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        wire["reasoning_content"] = message.reasoning
    if message.tool_calls:
        wire["tool_calls"] = [_call_to_openai(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        wire["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        wire["name"] = message.name
    return wire | message.extra


def message_from_openai(wire: Wire) -> Message:
    """One message of the wire.

    Raises:
        PermanentError: it is no chat message.
    """
    return _located(wire, "message")


def arguments_from_text(text: Any) -> tuple[dict[str, Any], str | None]:
    """A call's arguments as an object, or nothing and the text as it was written when that is no JSON object.

    Numbers that a JSON writer would change (`1e400`) make it stay text too.
    """
    if isinstance(text, dict):
        return text, None
    if text is None or (isinstance(text, str) and not text.strip()):
        return {}, None  # how several servers write a call without arguments
    if not isinstance(text, str):
        return {}, msgspec.json.encode(text).decode()
    try:
        arguments = _decode_object(text)
        faithful = _decode_object(msgspec.json.encode(arguments)) == arguments
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return {}, text
    return (arguments, None) if faithful else ({}, text)


def _located(wire: Any, where: str) -> Message:
    if not isinstance(wire, dict):
        raise PermanentError(f"a message must be an object, not {type(wire).__name__}", where=where)
    left = dict(wire)
    role = left.pop("role", None)
    if role not in _ROLES:
        raise PermanentError(f"unknown role {role!r}", where=where, fix=f"Known are: {', '.join(_ROLES)}.")
    if _ROLES[role] != role:
        left["role"] = role
    calls = left.pop("tool_calls", None) or ()
    if not isinstance(calls, list | tuple):
        raise PermanentError("tool_calls must be a list", where=where)
    return Message(
        role=_ROLES[role],
        content=_content(left.pop("content", None), where),
        reasoning=_reasoning(left),
        tool_calls=tuple(_call(call, f"{where}.tool_calls[{place}]") for place, call in enumerate(calls)),
        tool_call_id=_text_field(left, "tool_call_id", where),
        name=_text_field(left, "name", where),
        extra=left,
    )


def _content(content: Any, where: str) -> str | list[dict[str, Any]] | None:
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list):
        # Some clients put bare strings among the parts.
        parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
        if all(isinstance(part, dict) for part in parts):
            return parts
    raise PermanentError("content must be text, null or a list of parts", where=where)


def _reasoning(left: Wire) -> str | None:
    """Take the first spelling that holds text. One of another type is none of ours, and null says nothing."""
    for spelling in _REASONING:
        if isinstance(left.get(spelling), str):
            text: str = left.pop(spelling)
            for other in _REASONING:
                if left.get(other, text) in (None, text):
                    left.pop(other, None)
            return text
    for spelling in _REASONING:
        if spelling in left and left[spelling] is None:
            del left[spelling]
    return None


def _text_field(left: Wire, name: str, where: str) -> str | None:
    value = left.pop(name, None)
    if value is not None and not isinstance(value, str):
        raise PermanentError(f"{name} must be text", where=where)
    return value


def _call(wire: Any, where: str) -> ToolCall:
    kind = "custom" if isinstance(wire, dict) and "custom" in wire else "function"
    if not isinstance(wire, dict) or not isinstance(wire.get(kind), dict):
        raise PermanentError("a tool call needs a function object", where=where)
    left, function = dict(wire), dict(wire[kind])
    del left[kind]
    call_id, name = left.pop("id", None), function.pop("name", None)
    if not isinstance(name, str) or not isinstance(call_id, str | None):
        raise PermanentError("a tool call needs a function name, and its id must be text", where=where)
    arguments: dict[str, Any]
    raw: str | None
    if kind == "custom":  # free text by design: there is no object to parse
        arguments, raw = {}, str(function.pop("input", ""))
    else:
        arguments, raw = arguments_from_text(function.pop("arguments", "{}"))
    if left.get("type") == "function":
        del left["type"]
    if function:
        left["function"] = function
    return ToolCall(id=call_id or "", name=name, arguments=arguments, raw_arguments=raw, extra=left)


def _call_to_openai(call: ToolCall) -> Wire:
    text = call.raw_arguments if call.raw_arguments is not None else msgspec.json.encode(call.arguments).decode()
    extra = dict(call.extra)
    more = extra.pop("function", {})
    if extra.get("type") == "custom":
        return {"id": call.id, "custom": {"name": call.name, "input": text} | more} | extra
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": text} | more} | extra
