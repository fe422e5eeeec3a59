"""A student's reply as OpenAI's clients read it: whole, or as the chunks of a stream. Pure."""

from collections.abc import Iterator
from typing import Any

import orjson

from stillhouse.serving.gateway.backend import Reply

Head = dict[str, Any]


def servable(body: dict[str, Any]) -> bool:
    """Whether a student can answer what the request asks for: one reply, of its own choice, in its own form."""
    form = body.get("response_format")
    return (
        body.get("n") in (None, 1)
        and body.get("tool_choice") in (None, "auto")
        and not body.get("logprobs")
        and (form is None or (isinstance(form, dict) and form.get("type") == "text"))
    )


def head(request_id: str, route: str, created: int) -> Head:
    """What every object of a reply begins with."""
    return {"id": f"chatcmpl-{request_id}", "created": created, "model": route}


def completion(top: Head, reply: Reply) -> bytes:
    """The `chat.completion`."""
    choice = {"index": 0, "message": {"role": "assistant"} | reply.message, "finish_reason": reply.finish_reason, "logprobs": None}
    return orjson.dumps({**top, "object": "chat.completion", "choices": [choice], "usage": usage(reply)})


def first_chunk(top: Head) -> bytes:
    """The chunk that names the role."""
    return _chunk(top, {"role": "assistant", "content": ""})


def text_chunk(top: Head, text: str) -> bytes:
    """A piece of the text."""
    return _chunk(top, {"content": text})


def last_chunks(top: Head, reply: Reply, *, sent: bool, with_usage: bool) -> Iterator[bytes]:
    """What ends a stream, but for `[DONE]`.

    Args:
        top: of `head`.
        reply: the whole reply.
        sent: its text went out already.
        with_usage: the caller asked for the usage.
    """
    if not sent and reply.message.get("content"):
        yield text_chunk(top, reply.message["content"])
    for place, call in enumerate(reply.message.get("tool_calls") or ()):
        yield _chunk(top, {"tool_calls": [{"index": place, **call}]})
    yield _chunk(top, {}, reply.finish_reason)
    if with_usage:
        yield _data({**top, "object": "chat.completion.chunk", "choices": [], "usage": usage(reply)})


def usage(reply: Reply) -> dict[str, Any]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": reply.input_tokens,
        "completion_tokens": reply.output_tokens,
        "total_tokens": reply.input_tokens + reply.output_tokens,
        "prompt_tokens_details": {"cached_tokens": reply.cached_tokens},
    }


def _chunk(top: Head, delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return _data({**top, "object": "chat.completion.chunk", "choices": [choice]})


def _data(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"
