"""An engine of vLLM's form that says what a test wants, and misbehaves on demand."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from stillhouse.schemas.student_folder import Probe

Behaviour = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


class FakeEngine:
    """Serves any adapter without reading it.

    Attributes:
        pieces: of the reply, a token each.
        probes: what it scores: `scored` names whose log-probabilities it gives.
        logprobs: whether it gives any.
        usage: whether it counts, and names the tokens of a chunk.
        adapters: whether it loads any at run time.
        started: when its process began; None shows no metrics.
        behave: takes every completion over.
        asked: the completions that were asked for.
    """

    def __init__(self) -> None:
        self.loaded: dict[str, str] = {}
        self.pieces: Sequence[str] = ("Bye", ".")
        self.finish: str | None = "stop"
        self.probes: Sequence[Probe] = ()
        self.scored = "student"
        self.logprobs = self.usage = self.adapters = True
        self.started: float | None = 100.0
        self.behave: Behaviour | None = None
        self.asked: list[dict[str, Any]] = []
        self.root, self.url = "", ""

    @asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator["FakeEngine"]:
        app = web.Application()
        app.add_routes(
            [
                web.get("/v1/models", self._models),
                web.get("/metrics", self._metrics),
                web.post("/v1/completions", self._complete),
                web.post("/v1/load_lora_adapter", self._load),
                web.post("/v1/unload_lora_adapter", self._unload),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _models(self, request: web.Request) -> web.StreamResponse:
        base = {"id": "base", "root": self.root, "parent": None, "max_model_len": 512}
        adapters = [{"id": name, "root": root, "parent": "base", "max_model_len": None} for name, root in self.loaded.items()]
        return web.json_response({"object": "list", "data": [base, *adapters]})

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        if self.started is None:
            raise web.HTTPNotFound
        return web.Response(text=f"# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {self.started}\n")

    async def _load(self, request: web.Request) -> web.StreamResponse:
        if not self.adapters:
            raise web.HTTPNotFound
        body = await request.json()
        if body["lora_name"] in self.loaded:
            return error(400, f"The lora adapter '{body['lora_name']}' has already been loaded.")
        self.loaded[body["lora_name"]] = body["lora_path"]
        return web.Response(text="Success")

    async def _unload(self, request: web.Request) -> web.StreamResponse:
        name = (await request.json())["lora_name"]
        if self.loaded.pop(name, None) is None:
            return error(404, f"The lora adapter '{name}' cannot be found.")
        return web.Response(text="Success")

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        if self.behave is not None:
            return await self.behave(request, body)
        if body["model"] not in self.loaded:
            return error(404, f"The model `{body['model']}` does not exist.")
        if body.get("echo"):
            return self._score(body)
        ids = [0] * len(self.pieces)
        if written := self._by_heart(body):
            ids = written
        if body.get("stream"):
            return await self._stream(request)
        choice = {"text": "".join(self.pieces), "finish_reason": self.finish}
        whole: dict[str, Any] = {"choices": [choice | {"token_ids": ids} if self.usage else choice]}
        return web.json_response(whole | {"usage": self._usage()} if self.usage else whole)

    def _score(self, body: dict[str, Any]) -> web.StreamResponse:
        if not self.logprobs:
            return error(400, "echo is not offered")
        (probe,) = [p for p in self.probes if list(p.ids) == body["prompt"]]
        scores = getattr(probe, self.scored)
        return web.json_response({"choices": [{"text": "", "finish_reason": "length", "logprobs": {"token_logprobs": [None, *scores]}}]})

    def _by_heart(self, body: dict[str, Any]) -> list[int]:
        """How a probe goes on that begins so, if the student is served."""
        begun = len(body["prompt"])
        rests = [list(p.ids[begun:]) for p in self.probes if list(p.ids[:begun]) == body["prompt"]] if self.scored == "student" else []
        return rests[0][: body["max_tokens"]] if rests else []

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = await event_stream(request)
        for i, piece in enumerate(self.pieces):
            choice: dict[str, Any] = {"text": piece, "finish_reason": self.finish if i == len(self.pieces) - 1 else None}
            await send(response, {"choices": [choice | {"token_ids": [0]} if self.usage else choice]})
        if self.usage:
            await send(response, {"choices": [], "usage": self._usage()})
        await response.write(b"data: [DONE]\n\n")
        return response

    def _usage(self) -> dict[str, Any]:
        details = {"cached_tokens": 11}
        return {"prompt_tokens": 20, "completion_tokens": len(self.pieces) + 1, "prompt_tokens_details": details}


async def event_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    return response


async def send(response: web.StreamResponse, chunk: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")


def error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "x", "param": None, "code": status}}, status=status)


def answers(status: int, body: bytes, kind: str = "application/json") -> Behaviour:
    """The same answer to everything."""

    async def behave(request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        return web.Response(status=status, body=body, content_type=kind)

    return behave


async def resets(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Closes the connection before it answers."""
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def half_a_stream(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """A few words, and then the connection is gone."""
    response = await event_stream(request)
    for _ in range(40):
        await send(response, {"choices": [{"text": "word ", "token_ids": [1], "finish_reason": None}]})
    assert request.transport is not None
    request.transport.close()
    return response


async def hangs(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Says nothing for ever."""
    await asyncio.Event().wait()
    return web.Response()
