"""The teacher's upstream: bytes through, with an ear on what they cost."""

import io
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.events import Policy, PolicyRole
from stillhouse.sdk.prices import TokenPrice, token_price
from stillhouse.sdk.routes import RouteSettings
from stillhouse.serving.gateway.answers import Answer, message_of, usage_of
from stillhouse.serving.gateway.backend import Call
from stillhouse.serving.gateway.failures import UpstreamError
from stillhouse.serving.gateway.prices import estimate
from stillhouse.serving.gateway.sse import Assembly

CONNECT_S = 10.0
MAX_REPLY = 64 << 20
_JSON = {"Content-Type": "application/json"}


class Whole:
    """A reply that is no stream: status, bytes and their meaning."""

    def __init__(self, status: int, data: bytes, answer: Answer) -> None:
        self.status, self.data, self.answer = status, data, answer


class Teacher:
    """One route's upstream.

    Args:
        name: the route's.
        route: its settings.
        session: connections, shared by all routes.
        environment: where the key is.

    Raises:
        PermanentError: no price, or no key in the variable that the route names.
    """

    def __init__(
        self, name: str, route: RouteSettings, session: aiohttp.ClientSession, environment: Callable[[str], str | None] = os.getenv
    ) -> None:
        self._route, self._session = route, session
        self._url = route.teacher_url.rstrip("/") + "/chat/completions"
        self._price: TokenPrice = token_price(route, name)
        self._headers = dict(_JSON)
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=route.teacher_timeout_s)
        if route.teacher_key:
            key = environment(route.teacher_key)
            if not key:
                raise PermanentError(
                    f"{route.teacher_key} is not set", where=f"[routes.{name}] teacher_key", fix="Set it to the teacher's key."
                )
            self._headers["Authorization"] = f"Bearer {key}"

    @asynccontextmanager
    async def ask(self, call: Call) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send the request; the reply's body is still to come.

        Raises:
            UpstreamError: it cannot be reached, is too slow or breaks off, also while its body is read inside the context.
        """
        try:
            body = io.BytesIO(self._body(call))
            async with self._session.post(self._url, data=body, headers=self._headers, timeout=self._timeout) as response:
                yield response
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self.failure(error) from error

    def failure(self, error: Exception) -> UpstreamError:
        """What a client is told about a failed connection."""
        if isinstance(error, TimeoutError):
            what = f"The teacher said nothing for {self._route.teacher_timeout_s:g} s"
            return UpstreamError(504, what, code="upstream_timeout")
        if isinstance(error, aiohttp.ClientConnectorError):
            return UpstreamError(502, "The teacher cannot be reached", code="upstream_unreachable")
        if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError | aiohttp.ClientOSError):
            return UpstreamError(502, "The teacher's connection broke off", code="upstream_broke_off")
        return UpstreamError(502, f"The teacher's reply cannot be read: {type(error).__name__}", code="upstream_invalid")

    async def whole(self, response: aiohttp.ClientResponse, call: Call) -> Whole:
        """Read a reply that is no stream.

        Raises:
            UpstreamError: it is no chat completion, or its body breaks off.
        """
        data = await self._read(response)
        if response.status != 200:
            return Whole(response.status, _as_openai(response.status, data), self.answer(call, None, None, "", f"HTTP {response.status}"))
        try:
            body = orjson.loads(data)
            choice = body["choices"][0]
            message, model = choice["message"], str(body.get("model") or "")
        except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise UpstreamError(502, "The teacher's reply is no chat completion", code="upstream_invalid") from error
        logprobs = choice.get("logprobs")
        answer = self.answer(call, message, body.get("usage"), model, logprobs=orjson.dumps(logprobs).decode() if logprobs else None)
        return Whole(200, data, answer)

    def streamed(self, call: Call, assembly: Assembly, error: str | None) -> Answer:
        """What a stream said, whole or not.

        Args:
            call: the request.
            assembly: what came of it.
            error: why it ended early.
        """
        return self.answer(call, assembly.message, assembly.usage, assembly.model, error)

    def answer(self, call: Call, message: Any, usage: Any, model: str, error: str | None = None, logprobs: str | None = None) -> Answer:
        """What the teacher said, priced. A reply without usage is estimated, an error reply is free."""
        said = message_of(message) if message is not None else None
        counted = usage_of(usage)
        estimated = counted is None and message is not None
        if counted is None:
            counted = estimate(len(orjson.dumps(call.body)), len(orjson.dumps(message))) if estimated else usage_of(_NOTHING)
        assert counted is not None
        cost = self._price(counted.input_tokens or 0, counted.cached_tokens or 0, counted.output_tokens or 0)
        policy = Policy(role=PolicyRole.TEACHER, model=model or self._route.teacher_model)
        if said is None and error is None:
            error = "the reply's message is no chat message"
        return Answer(policy=policy, message=said, usage=counted, cost_micro_usd=cost, estimated=estimated, error=error, logprobs=logprobs)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        parts, size = [], 0
        async for part in response.content.iter_any():
            size += len(part)
            if size > MAX_REPLY:
                raise UpstreamError(502, f"The teacher's reply is longer than {MAX_REPLY >> 20} MiB", code="upstream_invalid")
            parts.append(part)
        return b"".join(parts)

    def _body(self, call: Call) -> bytes:
        body = call.body | {"model": self._route.teacher_model}
        if call.stream:
            options = body.get("stream_options")
            body["stream_options"] = (options if isinstance(options, dict) else {}) | {"include_usage": True}
        return orjson.dumps(body)


_NOTHING = {"prompt_tokens": 0, "completion_tokens": 0}


def _as_openai(status: int, data: bytes) -> bytes:
    """An upstream's error as it is, when it has OpenAI's form."""
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        body = None
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        return data
    return UpstreamError(status, f"The teacher answered with HTTP {status}", code="upstream_error").json()
