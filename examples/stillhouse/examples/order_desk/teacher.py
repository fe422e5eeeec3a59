"""The stand-in teacher's OpenAI-compatible endpoint: `python -m stillhouse.examples.order_desk.teacher --port 0`.

What it answers is `expert.answer`, a pure function; this file adds HTTP, a latency that is really slept, and token counts.
It imports neither the environment nor the tasks.
"""

import argparse
import asyncio
import json
import math
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from aiohttp import web

from stillhouse.examples.order_desk.expert import answer
from stillhouse.examples.order_desk.habits import chance
from stillhouse.examples.order_desk.pricing import NOTICE, PRICED_AS, STAND_IN
from stillhouse.schemas.errors import UsageError

CHARACTERS_PER_TOKEN = 4  # the declared rule of this endpoint's usage figures: no tokenizer belongs to a script
LATENCY_MS = 250.0
_JITTER = 0.3  # each request takes 70-130 % of the latency, by a hash of its messages
_LATENCY = web.AppKey("latency_s", float)

__all__ = ["answer", "completion", "main", "make_app"]


def make_app(latency_ms: float = LATENCY_MS) -> web.Application:
    """The endpoint: `/v1/models`, `/v1/chat/completions` (whole and streamed), `/healthz`."""
    app = web.Application(middlewares=[_errors_as_openai], client_max_size=8 * 1024 * 1024)
    app[_LATENCY] = latency_ms / 1000
    app.router.add_get("/v1/models", _models)
    app.router.add_post("/v1/chat/completions", _chat)
    app.router.add_get("/healthz", _healthz)
    return app


def completion(request: Mapping[str, Any], created: int) -> dict[str, Any]:
    """The `chat.completion` object for a request's JSON.

    Raises:
        UsageError: not a request that OpenAI's API would take, or a model that is not here.
    """
    if request.get("model") != STAND_IN:
        raise UsageError(f"the model {request.get('model')!r} does not exist", where="model", fix=f"Use {STAND_IN}.")
    message = answer(request.get("messages"), request.get("tools"))
    prompt = _tokens(json.dumps([request.get("messages"), request.get("tools") or []], ensure_ascii=False))
    reasoning = _tokens(message["reasoning_content"])
    spoken = _tokens((message["content"] or "") + "".join(str(c["function"]) for c in message.get("tool_calls", ())))
    return {
        "id": f"chatcmpl-{_hash(request):015d}",
        "object": "chat.completion",
        "created": created,
        "model": STAND_IN,
        "choices": [
            {"index": 0, "message": message, "finish_reason": "tool_calls" if message.get("tool_calls") else "stop", "logprobs": None}
        ],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": reasoning + spoken,
            "total_tokens": prompt + reasoning + spoken,
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        },
    }


def chunks(whole: Mapping[str, Any], *, usage: bool) -> list[dict[str, Any]]:
    """A completion as the `chat.completion.chunk` objects of a stream."""
    head = {k: whole[k] for k in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    choice = whole["choices"][0]
    message = choice["message"]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None}, {"reasoning_content": message["reasoning_content"]}]
    deltas += [{"tool_calls": [{"index": i, **call}]} for i, call in enumerate(message.get("tool_calls", ()))]
    words = (message["content"] or "").split(" ")
    deltas += [{"content": word if i == 0 else f" {word}"} for i, word in enumerate(words) if message["content"]]
    parts = [head | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    parts.append(head | {"choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]})
    if usage:
        parts.append(head | {"choices": [], "usage": whole["usage"]})
    return parts


def _tokens(text: str) -> int:
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)


def _hash(request: Mapping[str, Any]) -> int:
    return int(chance(json.dumps(request, sort_keys=True), "completion") * 10**15)


@web.middleware
async def _errors_as_openai(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
        return response
    except UsageError as error:
        missing = error.where == "model"
        return _error(404 if missing else 400, str(error), error.where or None, "model_not_found" if missing else None)
    except web.HTTPException as error:
        return _error(error.status, error.reason, None, None)


def _error(status: int, message: str, param: str | None, code: str | None) -> web.Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return web.json_response({"error": {"message": message, "type": kind, "param": param, "code": code}}, status=status)


async def _healthz(_: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


async def _models(_: web.Request) -> web.Response:
    card = {"id": STAND_IN, "object": "model", "created": 0, "owned_by": "stillhouse", "priced_as": PRICED_AS, "notice": NOTICE}
    return web.json_response({"object": "list", "data": [card]})


async def _chat(request: web.Request) -> web.StreamResponse:
    body = await _body(request)
    whole = completion(body, int(time.time()))
    jitter = 1 - _JITTER + 2 * _JITTER * chance(json.dumps(body.get("messages")), "latency")
    await asyncio.sleep(request.app[_LATENCY] * jitter)
    if not body.get("stream"):
        return web.json_response(whole)
    options = body.get("stream_options")
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    async for line in _lines(chunks(whole, usage=isinstance(options, Mapping) and bool(options.get("include_usage")))):
        await response.write(line)
    await response.write_eof()
    return response


async def _lines(parts: Sequence[Mapping[str, Any]]) -> AsyncIterator[bytes]:
    for part in parts:
        yield f"data: {json.dumps(part)}\n\n".encode()
    yield b"data: [DONE]\n\n"


async def _body(request: web.Request) -> Mapping[str, Any]:
    try:
        body = json.loads(await request.read())
    except ValueError as error:
        raise UsageError(f"the body is not JSON: {error}", where="body", fix="Send a JSON object.") from error
    if not isinstance(body, Mapping):
        raise UsageError("the body is not a JSON object", where="body", fix="Send a chat completion request.")
    return body


async def _serve(host: str, port: int, latency_ms: float) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    runner = web.AppRunner(make_app(latency_ms), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        bound = runner.addresses[0]
        print(json.dumps({"url": f"http://{host}:{bound[1]}/v1", "model": STAND_IN, "priced_as": PRICED_AS, "notice": NOTICE}), flush=True)
        await stopped.wait()
    finally:
        await runner.cleanup()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C. Prints one line of JSON with `url` when ready; 1 when the address cannot be had."""
    parser = argparse.ArgumentParser(prog="python -m stillhouse.examples.order_desk.teacher", description=NOTICE)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free port; the line printed says which")
    parser.add_argument("--latency-ms", type=float, default=LATENCY_MS, help="mean time that a request takes")
    chosen = parser.parse_args(arguments)
    try:
        asyncio.run(_serve(chosen.host, chosen.port, chosen.latency_ms))
    except OSError as error:
        parser.exit(1, f"cannot listen on {chosen.host}:{chosen.port}: {error.strerror}. Choose another --port (0: any free one).\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
