"""The HTTP side: OpenAI's endpoints, vLLM's adapter endpoints, health and metrics."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson
import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from stillhouse.schemas.errors import PermanentError, RetryableError
from stillhouse.serving.student import chat, completions
from stillhouse.serving.student.adapters import AdapterNotFoundError
from stillhouse.serving.student.catalog import NoSuchModelError, Served
from stillhouse.serving.student.replies import Reply
from stillhouse.serving.student.server import StudentServer
from stillhouse.serving.student.wire import BadRequestError, ChatRequest, Common, CompletionRequest, error_object, read

log = structlog.get_logger()
MAX_BODY = 8 << 20
Head = dict[str, Any]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class StudentApp:
    """Handlers over one student server.

    Args:
        server: what answers.
    """

    def __init__(self, server: StudentServer) -> None:
        self.server = server
        self.draining = False
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._guard])
        app.add_routes(
            [
                web.post("/v1/chat/completions", self.chat),
                web.post("/v1/completions", self.complete),
                web.post("/v1/load_lora_adapter", self.load),
                web.post("/v1/unload_lora_adapter", self.unload),
                web.get("/v1/models", self.models),
                web.get("/healthz", self.health),
                web.get("/readyz", self.ready),
                web.get("/metrics", self.show_metrics),
            ]
        )
        return app

    async def drain(self, timeout: float) -> None:
        """Take nothing new, and wait for what is open."""
        self.draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            log.warning("drain_timed_out", open=self._open)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/chat/completions`."""
        asked = read(await request.read(), ChatRequest)
        served = self.server.catalog.get(asked.model)
        prompt = chat.render(asked, served)
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        limit = served.context if asked.limit is None else asked.limit
        reply = self.server.reply(served, asked, prompt, max(1, limit), logprobs, live=bool(asked.stream))
        head = _head("chatcmpl", asked)
        if asked.stream:
            return await self._stream_chat(request, asked, served, reply, head)
        await reply.finished()
        action = chat.action_of(reply, served, head["id"])
        body = chat.completion(asked, reply, served, head, action)
        return _json(body, headers=self._format_error(served, action.error))

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/completions`."""
        asked = read(await request.read(), CompletionRequest)
        served = self.server.catalog.get(asked.model)
        prompts = [self.server.encode(p) if isinstance(p, str) else p for p in asked.prompts()]
        limit = completions.DEFAULT_MAX_TOKENS if asked.max_tokens is None else asked.max_tokens
        if asked.stream and (len(prompts) > 1 or asked.echo or asked.logprobs is not None):
            raise BadRequestError("a stream has one prompt, no echo and no logprobs", param="stream")
        replies = [self.server.reply(served, asked, p, limit, asked.logprobs, live=bool(asked.stream)) for p in prompts]
        head = _head("cmpl", asked)
        if not asked.stream:
            await _finish_all(replies)
            return _json(completions.completion(asked, replies, served, head))
        return await self._stream_completion(request, asked, replies[0], head)

    async def _stream_completion(self, request: web.Request, asked: CompletionRequest, reply: Reply, head: Head) -> web.StreamResponse:
        writer = completions.ChunkWriter(asked, reply, head)
        response = await _event_stream(request)
        async for piece in reply.pieces():
            await _send(response, writer.piece(piece))
        await _send(response, writer.piece("", reply.finish))
        if usage := writer.usage():
            await _send(response, usage)
        return await _end(response)

    async def load(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/load_lora_adapter`."""
        name, path = await _fields(request, "lora_name", "lora_path")
        if not name or not path:
            raise BadRequestError("Both 'lora_name' and 'lora_path' must be provided.")
        await self.server.load(name, path)
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/unload_lora_adapter`."""
        (name,) = await _fields(request, "lora_name")
        if not name:
            raise BadRequestError("'lora_name' must be provided.")
        await self.server.unload(name)
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def models(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/models`."""
        base = self.server.catalog.base
        data = [
            {"id": s.name, "object": "model", "created": 0, "owned_by": "stillhouse", "root": str(s.root),
             "parent": base if s.adapter else None, "max_model_len": s.context, "sha256": s.digest or None}
            for s in self.server.catalog.all()
        ]  # fmt: skip
        return _json({"object": "list", "data": data})

    async def health(self, request: web.Request) -> web.StreamResponse:
        """`GET /healthz`: 200 while the model's thread lives."""
        return _json({"ok": True}) if self.server.alive else _json({"ok": False, "why": "the model's thread has ended"}, status=503)

    async def ready(self, request: web.Request) -> web.StreamResponse:
        """`GET /readyz`: 200 while requests are taken."""
        ok = self.server.alive and not self.draining
        return _json({"ok": ok}, status=200 if ok else 503)

    async def show_metrics(self, request: web.Request) -> web.StreamResponse:
        """`GET /metrics`."""
        return web.Response(body=generate_latest(self.server.metrics.registry), headers={"content-type": CONTENT_TYPE_LATEST})

    async def _stream_chat(self, request: web.Request, asked: ChatRequest, served: Served, reply: Reply, head: Head) -> web.StreamResponse:
        writer = chat.ChunkWriter(head)
        pieces = reply.pieces()
        first = await anext(pieces, None)  # an error before the first token is still an HTTP error
        response = await _event_stream(request)
        await _send(response, writer.first())
        if first and (chunk := writer.text(first)):
            await _send(response, chunk)
        async for piece in pieces:
            if chunk := writer.text(piece):
                await _send(response, chunk)
        action = chat.action_of(reply, served, head["id"])
        self._format_error(served, action.error)
        for chunk in writer.last(reply, action):
            await _send(response, chunk)
        if asked.stream_options and asked.stream_options.include_usage:
            await _send(response, writer.usage(reply))
        return await _end(response)

    def _format_error(self, served: Served, error: str | None) -> dict[str, str]:
        if not error:
            return {}
        self.server.metrics.format_errors.labels(served.name).inc()
        return {chat.FORMAT_ERROR: chat.header_value(error)}

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Errors as OpenAI's clients expect them, and the books of requests."""
        if request.method != "POST":
            return await handler(request)
        began = time.monotonic()
        self._open += 1
        self._idle.clear()
        try:
            response = await self._answer(request, handler)
        finally:
            self._open -= 1
            if not self._open:
                self._idle.set()
        self.server.metrics.requests.labels(request.path, str(response.status)).inc()
        self.server.metrics.seconds.labels(request.path).observe(time.monotonic() - began)
        return response

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self.draining:
            return _refuse("the server is stopping", "service_unavailable", 503, retry_after=1.0)
        try:
            return await handler(request)
        except BadRequestError as error:
            return _refuse(str(error), "invalid_request_error", 400, param=error.param)
        except (NoSuchModelError, AdapterNotFoundError) as error:
            return _refuse(str(error), "NotFoundError", 404)
        except PermanentError as error:
            return _refuse(str(error), "invalid_request_error", 400)
        except RetryableError as error:
            return _refuse(str(error), "service_unavailable", 503, retry_after=error.retry_after)
        except web.HTTPRequestEntityTooLarge:
            return _refuse(f"the request is larger than {MAX_BODY} bytes", "invalid_request_error", 413)
        except web.HTTPException as error:
            return _refuse(error.reason, "invalid_request_error", error.status)
        except ConnectionResetError:
            raise  # the client has gone: nobody to answer
        except Exception as error:
            log.exception("request_failed", path=request.path)
            return _refuse(f"internal error: {type(error).__name__}", "server_error", 500)


async def _finish_all(replies: Sequence[Reply]) -> None:
    """Run them at once. When one fails the others are cancelled, and its error is raised as if it had been alone."""
    try:
        async with asyncio.TaskGroup() as group:
            for reply in replies:
                group.create_task(reply.finished())
    except ExceptionGroup as errors:
        first: Exception = errors
        while isinstance(first, ExceptionGroup):
            first = first.exceptions[0]
        raise first from None


def _refuse(message: str, kind: str, status: int, *, param: str | None = None, retry_after: float | None = None) -> web.Response:
    headers = {"retry-after": str(max(1, round(retry_after)))} if retry_after else {}
    return _json(error_object(message, kind, status, param), status=status, headers=headers)


def _json(body: dict[str, Any], *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, headers={"content-type": "application/json", **(headers or {})})


def _head(prefix: str, asked: Common) -> Head:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.model}


async def _fields(request: web.Request, *names: str) -> list[str]:
    try:
        body = orjson.loads(await request.read())
        values = [body.get(name) or "" for name in names]
    except (orjson.JSONDecodeError, AttributeError) as error:
        raise BadRequestError(f"the request body is no JSON object: {error}") from error
    if not all(isinstance(v, str) for v in values):
        raise BadRequestError(f"{' and '.join(names)} must be text")
    return values


async def _event_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-cache"})
    await response.prepare(request)
    return response


async def _send(response: web.StreamResponse, chunk: dict[str, Any]) -> None:
    await response.write(b"data: " + orjson.dumps(chunk) + b"\n\n")


async def _end(response: web.StreamResponse) -> web.StreamResponse:
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response
