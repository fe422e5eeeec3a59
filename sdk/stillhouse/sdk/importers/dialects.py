"""Messages as other SDKs and tracers write them, made canonical.

Known are: OpenAI chat and Responses, Anthropic content blocks, Gemini contents, LangChain's `additional_kwargs`, OpenTelemetry GenAI
(`parts`, and the older per-message events) and OpenInference's flattened attributes.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.messages import Message, Role, ToolCall
from stillhouse.schemas.openai import arguments_from_text, message_from_openai

Json = dict[str, Any]

# Where a side of a request hides, most complete form first.
_INPUT = ("gen_ai.input.messages", "llm.input_messages", "gen_ai.prompt")
_OUTPUT = ("gen_ai.output.messages", "llm.output_messages", "gen_ai.completion")
_OPENAI_PARTS = ("text", "image_url", "input_audio", "file")
_NESTS = ("messages", "message", "contents", "candidates", "choices", "output", "args", "content")


def messages_from(value: Any, role: Role = "user") -> tuple[Message, ...]:
    """The messages in a value of any known shape.

    Args:
        value: a list, an object or a text (JSON or plain).
        role: who says a plain text.

    Raises:
        PermanentError: the shape is unknown.
    """
    if value is None:
        return ()
    if isinstance(value, str):
        parsed = _parsed(value)
        return messages_from(parsed, role) if isinstance(parsed, dict | list) else (Message(role=role, content=value),)
    if isinstance(value, list):
        return tuple(message for item in value for message in messages_from(item, role))
    if isinstance(value, dict):
        if "role" not in value and isinstance(value.get("parts"), list):
            value = {"role": role, **value}
        if "role" in value or value.get("type") in ("function_call", "function_call_output", "reasoning"):
            return tuple(_one(value))
        for nest in _NESTS:
            if isinstance(value.get(nest), list | dict) or (nest == "contents" and isinstance(value.get(nest), str)):
                return messages_from(value[nest], role)
    raise PermanentError(f"messages of an unknown shape: {str(value)[:80]}")


def messages_from_attributes(attributes: Mapping[str, Any], *, output: bool) -> tuple[Message, ...]:
    """The messages in a span's attributes, empty when it has none.

    Raises:
        PermanentError: an attribute holds messages of an unknown shape.
    """
    role: Role = "assistant" if output else "user"
    for name in _OUTPUT if output else _INPUT:
        if name in attributes:
            return messages_from(attributes[name], role)
        if flat := unflatten(attributes, name):
            return tuple(message for item in flat for message in _one(_open_inference(item)))
    return ()


def tools_from_attributes(attributes: Mapping[str, Any]) -> tuple[Json, ...]:
    """Tool definitions in a span's attributes, as OpenAI writes them."""
    found = [_parsed(item["tool"]["json_schema"]) for item in unflatten(attributes, "llm.tools")]
    found = found or _parsed(attributes.get("gen_ai.tool.definitions")) or []
    return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in found if isinstance(tool, dict))


def _is_definition(item: Json) -> bool:
    """LangChain's tracer records the tools of a request as tool messages that answer nothing."""
    content = item.get("content")
    return item.get("role") == "tool" and isinstance(content, dict) and "function" in content and not item.get("tool_call_id")


def tools_from(value: Any) -> tuple[Json, ...]:
    """Tool definitions that a tracer put among the messages of a request."""
    items = _parsed(value)
    return tuple(item["content"] for item in items if isinstance(item, dict) and _is_definition(item)) if isinstance(items, list) else ()


def unflatten(attributes: Mapping[str, Any], prefix: str) -> list[Json]:
    """`prefix.0.a.b` and so on as a list of nested objects; lists inside stay objects keyed by number, in order."""
    tree: Json = {}
    for key, value in attributes.items():
        if not key.startswith(f"{prefix}."):
            continue
        parts = key.removeprefix(f"{prefix}.").split(".")
        node = tree
        for part in parts[:-1]:
            node = node.setdefault(part, {})
        node[parts[-1]] = value
    return [tree[number] for number in sorted((key for key in tree if key.isdigit()), key=int)]


def _numbered(tree: Json | None) -> list[Json]:
    return [tree[number] for number in sorted(tree, key=int)] if tree else []


def _open_inference(item: Json) -> Json:
    """One message of OpenInference (below `message`) or of the older `gen_ai.prompt` as an OpenAI message."""
    message = item.get("message", item)
    calls = [call.get("tool_call", call) for call in _numbered(message.get("tool_calls"))]
    contents = [part["message_content"] for part in _numbered(message.get("contents")) if "message_content" in part]
    wire = {key: message[key] for key in ("role", "content", "tool_call_id", "name") if key in message}
    wire.setdefault("role", "user")
    if contents and "content" not in wire:
        wire["content"] = [{"type": part.get("type", "text"), **part} for part in contents]
    if calls:
        wire["tool_calls"] = [
            {
                "id": call.get("id"),
                "type": "function",
                "function": dict(call.get("function") or {"name": call["name"], "arguments": call["arguments"]}),
            }
            for call in calls
        ]
    return wire


def _parsed(text: Any) -> Any:
    if not isinstance(text, str) or text[:1] not in ("[", "{"):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _one(item: Json) -> Iterator[Message]:
    """One message or item of a list; a message with tool results inside becomes one message for each."""
    kind = item.get("type")
    if _is_definition(item):
        return
    if kind == "function_call":
        yield Message(role="assistant", tool_calls=(_call(item.get("call_id"), item["name"], item.get("arguments")),))
        return
    if kind == "function_call_output":
        yield Message(role="tool", content=text_of(item.get("output")), tool_call_id=item.get("call_id"))
        return
    if kind == "reasoning" and "role" not in item:
        yield Message(role="assistant", reasoning="\n".join(part.get("text", "") for part in item.get("summary") or ()) or None)
        return
    role = "assistant" if item["role"] in ("model", "ai") else "user" if item["role"] == "human" else item["role"]
    blocks = item["parts"] if isinstance(item.get("parts"), list) else item.get("content")
    if isinstance(blocks, list) and any(_is_block(block) for block in blocks):
        yield from _blocks(role, blocks)
        return
    wire = {key: value for key, value in item.items() if not key.startswith("gen_ai.") and key not in ("event.name", "additional_kwargs")}
    if isinstance(wire.get("content"), dict):  # some tracers record a tool's result as an object
        wire["content"] = text_of(wire["content"])
    extra = item.get("additional_kwargs") or {}
    yield message_from_openai(wire | {"role": role} | ({"tool_calls": extra["tool_calls"]} if extra.get("tool_calls") else {}))


def _is_block(block: Any) -> bool:
    """Whether a part is none that an OpenAI message may carry as it is."""
    return isinstance(block, dict) and (block.get("type") not in _OPENAI_PARTS or "content" in block)


@dataclass
class _Parts:
    """What the blocks of one message say, by what becomes of them."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    results: list[Message] = field(default_factory=list)
    others: list[Json] = field(default_factory=list)

    def add(self, part: Json) -> None:
        """Take one block in."""
        kind = part.get("type")
        call = part.get("function_call") or part.get("functionCall")
        answer = part.get("function_response") or part.get("functionResponse")
        if kind in ("tool_use", "tool_call"):
            self.calls.append(_call(part.get("id"), part["name"], part.get("input", part.get("arguments"))))
        elif call:
            self.calls.append(_call(call.get("id"), call["name"], call.get("args")))
        elif kind in ("tool_result", "tool_call_response"):
            content = part.get("content", part.get("response", part.get("result")))
            self.results.append(Message(role="tool", content=text_of(content), tool_call_id=part.get("tool_use_id", part.get("id"))))
        elif answer:
            content = text_of(answer.get("response"))
            self.results.append(Message(role="tool", content=content, tool_call_id=answer.get("id"), name=answer.get("name")))
        elif kind in ("thinking", "reasoning"):
            self.thoughts.append(text_of(part.get("thinking", part.get("content", part.get("text")))))
        elif isinstance(text := part.get("text", part.get("content")), str):
            self.texts.append(text)
        else:
            self.others.append(part)


def _blocks(role: str, blocks: list[Any]) -> Iterator[Message]:
    parts = _Parts()
    for block in blocks:
        parts.add(block if isinstance(block, dict) else {"type": "text", "text": str(block)})
    yield from parts.results
    if parts.results and not (parts.texts or parts.calls or parts.thoughts or parts.others):
        return
    content: Any = "".join(parts.texts) if parts.texts else None
    if parts.others:
        content = [{"type": "text", "text": text} for text in parts.texts] + parts.others
    said = message_from_openai({"role": role, "content": content})
    yield replace(said, reasoning="\n".join(parts.thoughts) or None, tool_calls=tuple(parts.calls))


def text_of(value: Any) -> str:
    """A tool's result as text: text blocks joined, anything else as JSON."""
    parsed = _parsed(value)
    inner = parsed.get("content") if isinstance(parsed, dict) and parsed.keys() == {"content"} else parsed
    if isinstance(inner, list) and inner and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in inner):
        return "".join(part["text"] for part in inner)
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _call(call_id: Any, name: str, arguments: Any) -> ToolCall:
    parsed, raw = arguments_from_text(arguments)
    return ToolCall(id=call_id or "", name=name, arguments=parsed, raw_arguments=raw)
