"""The teacher of a route, asked for one action: an OpenAI-compatible address."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from typing import Any

import msgspec

from stillhouse.schemas.errors import PermanentError, UnreachableError
from stillhouse.schemas.events import Policy, PolicyRole, Usage
from stillhouse.schemas.labels import Label
from stillhouse.schemas.messages import Message
from stillhouse.schemas.openai import message_from_openai, to_openai
from stillhouse.sdk.prices import token_price
from stillhouse.sdk.routes import RouteSettings
from stillhouse.streams.signals.settings import SignalsSettings

_AGAIN = frozenset({408, 409, 425, 429})
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

Ask = Callable[[Sequence[Message], Sequence[Mapping[str, object]]], Label]
"""The conversation and the tools; raises UnreachableError where the same question may be answered later, PermanentError where not."""


def route_of(name: str, routes: Mapping[str, RouteSettings], settings: SignalsSettings) -> RouteSettings | None:
    """The teacher of what came through a route, or through none: as signals choose it. None: it has no address."""
    if name in routes:
        return routes[name]
    if not (settings.teacher_url and settings.teacher_model):
        return None
    return RouteSettings(teacher_url=settings.teacher_url, teacher_model=settings.teacher_model, teacher_key=settings.teacher_key)


def teacher(name: str, route: RouteSettings, version: str = "") -> Ask:
    """How to ask a route's teacher.

    Args:
        name: of the route.
        route: its address, key and prices.
        version: of the teacher, for the record.

    Raises:
        PermanentError: what it costs is not known.
    """
    policy, price = Policy(role=PolicyRole.TEACHER, model=route.teacher_model, version=version), token_price(route, name)

    def ask(messages: Sequence[Message], tools: Sequence[Mapping[str, object]]) -> Label:
        body = {"model": route.teacher_model, "messages": to_openai(messages)} | ({"tools": list(tools)} if tools else {})
        began = time.perf_counter()
        answer = _post(route, body)
        action, usage = _action(answer, route.teacher_url), _usage(answer)
        latency = (time.perf_counter() - began) * 1000
        cost = price(usage.input_tokens or 0, usage.cached_tokens or 0, usage.output_tokens or 0)
        return Label(action=action, policy=policy, usage=usage, cost_micro_usd=cost, latency_ms=latency)

    return ask


def _post(route: RouteSettings, body: Mapping[str, Any]) -> Any:
    url, headers = f"{route.teacher_url.rstrip('/')}/chat/completions", {"Content-Type": "application/json"}
    if route.teacher_key and (key := os.environ.get(route.teacher_key)):
        headers["Authorization"] = f"Bearer {key}"
    try:
        with _open(urllib.request.Request(url, msgspec.json.encode(body), headers), timeout=route.teacher_timeout_s) as response:
            return json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            kind = UnreachableError if error.code in _AGAIN or error.code >= 500 else PermanentError
        raise kind(f"the teacher answers with status {error.code}", where=url) from error
    except (OSError, HTTPException) as error:
        raise UnreachableError(f"the teacher does not answer: {type(error).__name__}", where=url) from error
    except ValueError as error:
        raise PermanentError("the teacher's answer is no JSON", where=url) from error


def _action(answer: Any, where: str) -> Message:
    """What it would do: a whole reply or calls whose arguments can be read."""
    try:
        choice = answer["choices"][0]
        action, cut = message_from_openai(choice["message"]), choice.get("finish_reason") == "length"
    except (LookupError, TypeError, AttributeError) as error:
        raise PermanentError("the teacher's answer is no chat completion", where=where) from error
    unreadable = any(call.raw_arguments is not None for call in action.tool_calls)
    if cut or unreadable or action.role != "assistant" or not (action.tool_calls or action.text.strip()):
        raise PermanentError("the teacher's answer is no whole action", where=where)
    return action


def _usage(answer: Any) -> Usage:
    told = _object(answer.get("usage"))
    numbers = (told.get("prompt_tokens"), told.get("completion_tokens"), _object(told.get("prompt_tokens_details")).get("cached_tokens"))
    given, written, cached = (number if type(number) is int and number >= 0 else None for number in numbers)
    return Usage(input_tokens=given, output_tokens=written, cached_tokens=cached)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
