"""Server-sent events of chat completions: cut into events, put together to the whole reply. Pure."""

from typing import Any

import orjson

DONE = b"data: [DONE]\n\n"
MAX_EVENT = 8 << 20


class Splitter:
    """Cuts a stream of bytes after each event."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The events that are whole now, each with the blank line that ends it.

        Raises:
            ValueError: an event is longer than `MAX_EVENT`.
        """
        data = self._rest + data if self._rest else data
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        *events, self._rest = data.split(b"\n\n")
        if len(self._rest) > MAX_EVENT:
            raise ValueError("an event without an end")
        return [event + b"\n\n" for event in events if event.strip()]

    @property
    def rest(self) -> bytes:
        """What came after the last whole event."""
        return self._rest


def payload(event: bytes) -> bytes:
    """The data of an event; empty for comments and bare fields."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2:  # nearly all are one line
        return event[6:-2].strip()
    lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines)


class Assembly:
    """The whole reply of a stream, put together as it comes.

    Attributes:
        finish_reason: OpenAI's, when it came.
        usage: OpenAI's usage object, when it came.
        model: as the upstream names it.
        begun: a chunk came.
    """

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = None
        self.model, self.begun = "", False
        self._said: dict[str, list[str]] = {}
        self._other: dict[str, Any] = {}
        self._calls: dict[int, dict[str, Any]] = {}

    @property
    def message(self) -> dict[str, Any]:
        """The assistant's message as far as it came."""
        whole = {"role": "assistant", "content": None} | self._other | {name: "".join(parts) for name, parts in self._said.items()}
        return whole | {"tool_calls": [self._calls[place] for place in sorted(self._calls)]} if self._calls else whole

    def take(self, data: bytes) -> bool:
        """Take the data of one event; gives whether it says more than the usage, which a caller who did not ask for it must not see.

        Raises:
            ValueError: it is no chunk of a chat completion.
        """
        chunk = orjson.loads(data)
        try:
            choices = chunk.get("choices")
            self.model = chunk.get("model") or self.model
            if chunk.get("usage"):
                self.usage = dict(chunk["usage"])
            for choice in (choices or ())[:1]:
                self.finish_reason = choice.get("finish_reason") or self.finish_reason
                self._delta(choice.get("delta") or {})
        except (AttributeError, TypeError, KeyError, IndexError) as error:
            raise ValueError(f"not a chunk of a chat completion: {error!r}") from error
        self.begun = True
        return bool(choices) or not chunk.get("usage")

    def _delta(self, delta: dict[str, Any]) -> None:
        for name, value in delta.items():
            if name == "tool_calls":
                for part in value or ():
                    self._call(part)
            elif isinstance(value, str) and name != "role":
                self._said.setdefault(name, []).append(value)
            elif value is not None and name != "role":
                self._other[name] = value

    def _call(self, part: dict[str, Any]) -> None:
        empty = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        call = self._calls.setdefault(int(part.get("index") or 0), empty)
        call["id"] = part.get("id") or call["id"]
        function = part.get("function") or {}
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""
