"""From an HTTP request's bytes and headers to a `Call`: everything that a client can get wrong is named here."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import msgspec
import orjson

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.messages import Message
from stillhouse.schemas.openai import from_openai
from stillhouse.serving.gateway.failures import ApiError

PREFIX = "x-stillhouse-"
MAX_ID = 256
Body = dict[str, Any]


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller's `x-stillhouse-*` headers say, decoded.

    Args:
        trajectory: the run that the request belongs to; then the SDK sends its start and end.
        task: the task's id.
        family: the kind of task.
        conversation: the unit of routes that assign conversations.
        user: the unit of routes that assign users.
        capture: whether this request may become events.
    """

    trajectory: str | None = None
    task: str | None = None
    family: str | None = None
    conversation: str | None = None
    user: str | None = None
    capture: bool = True


def given(headers: Mapping[str, str]) -> Given:
    """The headers that are ours.

    Raises:
        ApiError: an id is too long.
    """
    values = {name: _decoded(headers, name) for name in ("trajectory", "task", "family", "conversation", "user")}
    return Given(**values, capture=headers.get(PREFIX + "capture", "on").lower() != "off")


def _decoded(headers: Mapping[str, str], name: str) -> str | None:
    value = headers.get(PREFIX + name)
    if not value:
        return None
    text = unquote(value)
    if len(text) > MAX_ID:
        raise ApiError(400, f"{PREFIX}{name} is longer than {MAX_ID} characters", code="invalid_header", param=PREFIX + name)
    return text


def read_object(data: bytes) -> Body:
    """The JSON object that a body is.

    Raises:
        ApiError: it is none.
    """
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"The request body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(body, dict):
        raise ApiError(400, f"The request body must be a JSON object, not {type(body).__name__}", code="invalid_json")
    return body


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A chat request whose fields have the types that the gateway itself relies on."""

    model: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    stream: bool
    usage_wanted: bool
    max_tokens: int | None
    temperature: float | None


def asked(body: Body) -> Asked:
    """The fields of a chat request that the gateway reads; all others go to the upstream as they are.

    Raises:
        ApiError: one of them is wrong.
    """
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise ApiError(400, "model must name a route", code="invalid_request", param="model")
    options = body.get("stream_options")
    return Asked(
        model=model,
        messages=_messages(body.get("messages")),
        tools=_tools(body.get("tools")),
        stream=_typed(body, "stream", bool) or False,
        usage_wanted=isinstance(options, dict) and options.get("include_usage") is True,
        max_tokens=_typed(body, "max_completion_tokens", int) or _typed(body, "max_tokens", int),
        temperature=_typed(body, "temperature", int, float),
    )


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise ApiError(400, "messages must be a list with at least one message", code="invalid_request", param="messages")
    try:
        return from_openai(value)
    except PermanentError as error:
        raise ApiError(400, str(error), code="invalid_request", param="messages") from error


def _tools(value: Any) -> tuple[dict[str, Any], ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise ApiError(400, "tools must be a list of tool definitions", code="invalid_request", param="tools")
    return tuple(value)


def _typed(body: Body, name: str, *kinds: type) -> Any:
    value = body.get(name)
    if value is not None and type(value) not in kinds:
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ApiError(400, f"{name} must be {wanted}, not {type(value).__name__}", code="invalid_request", param=name)
    return value
