"""The canonical message: OpenAI chat messages with tool calls whose arguments are parsed objects.

Arguments become a JSON string only at the OpenAI wire (`to_openai`, `from_openai`).
"""

from typing import Any, Literal

import msgspec

Role = Literal["system", "user", "assistant", "tool"]


class ToolCall(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One call of a tool. `arguments` is an object; `raw_arguments` keeps what a model wrote when that was no JSON object.

    `extra` carries unknown wire fields.
    """

    id: str
    name: str
    arguments: dict[str, Any] = {}
    raw_arguments: str | None = None
    extra: dict[str, Any] = {}


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One chat message. `reasoning` is what the model thought and did not send as content; `extra` carries unknown wire fields."""

    role: Role
    content: str | list[dict[str, Any]] | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    extra: dict[str, Any] = {}

    @property
    def text(self) -> str:
        """The content as plain text (text parts joined; other parts left out)."""
        if isinstance(self.content, list):
            return "".join(str(p.get("text", "")) for p in self.content if p.get("type") == "text")
        return self.content or ""


def encode_messages(messages: tuple[Message, ...] | list[Message]) -> str:
    """Messages as the compact JSON string that events carry."""
    return msgspec.json.encode(list(messages)).decode()


def decode_messages(text: str) -> tuple[Message, ...]:
    """The inverse of `encode_messages`.

    Raises:
        msgspec.ValidationError: not a list of canonical messages.
    """
    return msgspec.json.decode(text, type=tuple[Message, ...])
