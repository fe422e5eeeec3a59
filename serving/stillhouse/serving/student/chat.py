"""`/v1/chat/completions`: messages are rendered with the student's own spec, and what it writes is read back as an action."""

import json
from typing import Any

from stillhouse.schemas.actions import ParsedAction
from stillhouse.schemas.messages import Message
from stillhouse.schemas.openai import from_openai, message_to_openai
from stillhouse.serving.student.catalog import Served
from stillhouse.serving.student.generation import TokenLogprob
from stillhouse.serving.student.replies import Reply
from stillhouse.serving.student.wire import ChatRequest, usage_object

FORMAT_ERROR = "x-stillhouse-format-error"
# What an action may begin with in some grammar: from there a stream holds its text until it can be read.
_ACTION_MARKS = "{<"


def render(request: ChatRequest, served: Served) -> list[int]:
    """The prompt's token ids.

    Raises:
        PermanentError: the messages are not chat messages.
    """
    tools = [] if request.tool_choice == "none" else request.tools or []
    return served.renderer.encode(from_openai(request.messages), tools, add_generation_prompt=True).ids


def action_of(reply: Reply, served: Served, seed: str) -> ParsedAction:
    """The action in a reply. One that was cut by the token limit is no action, if it does not parse."""
    return served.renderer.parse(reply.text, seed)


def finish_reason(reply: Reply, message: Message) -> str:
    """OpenAI's finish reason."""
    if message.tool_calls:
        return "tool_calls"
    return "length" if reply.finish == "length" else "stop"


def reply_usage(reply: Reply) -> dict[str, Any]:
    """`usage` of one reply."""
    return usage_object(len(reply.generation.prompt), len(reply.result.tokens), reply.result.reused)


def completion(request: ChatRequest, reply: Reply, served: Served, head: dict[str, Any], action: ParsedAction) -> dict[str, Any]:
    """The whole answer of a request that does not stream."""
    choice: dict[str, Any] = {
        "index": 0,
        "message": message_to_openai(action.message),
        "finish_reason": finish_reason(reply, action.message),
        "logprobs": {"content": _logprobs(reply, served)} if request.logprobs else None,
    }
    if action.error:
        choice[FORMAT_ERROR.replace("-", "_")] = action.error
    return {**head, "object": "chat.completion", "choices": [choice], "usage": reply_usage(reply)}


class ChunkWriter:
    """The chunks of one streamed answer. Text goes out as it comes, until something that may be an action begins."""

    def __init__(self, head: dict[str, Any]) -> None:
        self._head = {**head, "object": "chat.completion.chunk"}
        self._holding = False
        self._sent = ""

    def first(self) -> dict[str, Any]:
        """The chunk that opens the message."""
        return self._chunk({"role": "assistant", "content": ""})

    def text(self, piece: str) -> dict[str, Any] | None:
        """A chunk for a piece of text; None while it is held."""
        cut = next((i for i, c in enumerate(piece) if c in _ACTION_MARKS), None)
        if not self._holding and cut is not None:
            piece, self._holding = piece[:cut], True
        elif self._holding:
            return None
        self._sent += piece
        return self._chunk({"content": piece}) if piece else None

    def last(self, reply: Reply, action: ParsedAction) -> list[dict[str, Any]]:
        """What was held, as calls or as text, and the chunk that ends the message."""
        message, chunks = action.message, []
        if left := message.text[len(self._sent) :]:
            chunks.append(self._chunk({"content": left}))
        for i, call in enumerate(message_to_openai(message).get("tool_calls", [])):
            chunks.append(self._chunk({"tool_calls": [{"index": i, **call}]}))
        end = self._chunk({}, finish_reason(reply, message))
        if action.error:
            end["choices"][0][FORMAT_ERROR.replace("-", "_")] = action.error
        return [*chunks, end]

    def usage(self, reply: Reply) -> dict[str, Any]:
        """The chunk that `stream_options.include_usage` asks for."""
        return {**self._head, "choices": [], "usage": reply_usage(reply)}

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {**self._head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]}


def header_value(text: str) -> str:
    """An error text that an HTTP header can carry."""
    return json.dumps(text)[1:-1][:200]


def _logprobs(reply: Reply, served: Served) -> list[dict[str, Any]]:
    pairs = zip(reply.result.tokens, reply.result.logprobs, strict=True)
    return [{**_entry(served, token, p.logprob), "top_logprobs": _top(served, p)} for token, p in pairs]


def _top(served: Served, found: TokenLogprob) -> list[dict[str, Any]]:
    return [_entry(served, token, logprob) for token, logprob in found.top]


def _entry(served: Served, token: int, logprob: float) -> dict[str, Any]:
    text = served.renderer.decode([token])
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
