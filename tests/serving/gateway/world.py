"""A gateway under test: in this process or as a process, upstreams that misbehave on demand, and a student engine of fixed replies."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from stillhouse.schemas.events import AgentEvent
from stillhouse.schemas.facts import StudentStage, StudentState
from stillhouse.schemas.route_state import RouteStates
from stillhouse.sdk.config import Config
from stillhouse.sdk.handover import CleanEvent, snapshot
from stillhouse.sdk.redaction import Redactor
from stillhouse.serving.gateway.backend import Attestation, Call, OnText, Reply, Verdict
from stillhouse.serving.gateway.server import Gateway, Ports

CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"order": 7}'}}
PARAMETERS = {"type": "object", "properties": {"order": {"type": "integer"}}}
TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": "find", "parameters": PARAMETERS}}]
ASK = [{"role": "system", "content": "Help."}, {"role": "user", "content": "Where is order 7?"}]


class Events:
    """A sink that keeps what it takes; `full` makes it refuse."""

    def __init__(self) -> None:
        self.events: list[AgentEvent] = []
        self.full = False

    def redact(self, event: AgentEvent) -> CleanEvent | None:
        return CleanEvent(snapshot(Redactor().redact(event).event))

    def emit(self, event: CleanEvent) -> bool:
        if not self.full:
            self.events.append(msgspec.json.decode(event.data, type=AgentEvent))
        return not self.full

    def when_kept(self, call: Callable[[], None]) -> None:
        call()

    def bodies(self, kind: type) -> list[Any]:
        return [event.body for event in self.events if type(event.body) is kind]


class Upstream:
    """A teacher. `behave` is what it does with a request; by default it answers with a text."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.behave: Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]] = speak
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        return await self.behave(request, body)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Upstream"]:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        try:
            yield self
        finally:
            await runner.cleanup()


def completion(message: dict[str, Any], usage: tuple[int, int] | None = (100, 20)) -> dict[str, Any]:
    body: dict[str, Any] = {"id": "x", "object": "chat.completion", "created": 1, "model": "big-1"}
    body["choices"] = [{"index": 0, "message": {"role": "assistant"} | message, "finish_reason": "stop"}]
    if usage:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return body


def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    part = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "big-1"}
    return b"data: " + json.dumps(part | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}).encode() + b"\n\n"


USAGE = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
USAGE_CHUNK = b'data: {"id": "x", "model": "big-1", "choices": [], "usage": ' + json.dumps(USAGE).encode() + b"}\n\n"
DONE = b"data: [DONE]\n\n"


async def stream(request: web.Request, parts: list[bytes]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for part in parts:
        await response.write(part)
    return response


async def speak(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Answer with a text that names the number of messages."""
    text = f"It is on its way ({len(body['messages'])})."
    if not body.get("stream"):
        return web.json_response(completion({"content": text}))
    words = text.split(" ")
    parts = [chunk({"role": "assistant", "content": ""}), *(chunk({"content": w if i == 0 else f" {w}"}) for i, w in enumerate(words))]
    response = await stream(request, [*parts, chunk({}, "stop"), USAGE_CHUNK, DONE])
    await response.write_eof()
    return response


async def busy_teacher(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """An upstream's error that is not of OpenAI's form."""
    return web.Response(status=503, body=b"try later", content_type="text/plain")


class FakeEngine:
    """Students whose replies a test sets."""

    def __init__(self) -> None:
        self.loaded: set[str] = set()
        self.asked: list[tuple[str, Call]] = []
        self.covered = True
        self.verdict = Verdict.ACCEPTED
        self.answer: Callable[[str, Call, OnText | None], Awaitable[Reply]] = say("By the student.")

    def covers(self, student: str, call: Call) -> bool:
        return self.covered

    async def reply(self, student: str, call: Call, on_text: OnText | None) -> Reply:
        self.asked.append((student, call))
        return await self.answer(student, call, on_text)

    async def load(self, student: str) -> None:
        self.loaded.add(student)

    async def unload(self, student: str) -> None:
        self.loaded.discard(student)

    async def attest(self, student: str) -> Attestation:
        return Attestation(verdict=self.verdict)

    def ready(self, student: str) -> bool:
        return student in self.loaded and self.verdict is not Verdict.REFUSED

    def refusal(self, student: str) -> Attestation | None:
        refused = student in self.loaded and self.verdict is Verdict.REFUSED
        return Attestation(verdict=self.verdict, reason="another's", numbers={"student": 0.7}) if refused else None

    async def close(self) -> None:
        self.loaded.clear()


def reply_of(message: dict[str, Any], format_error: str | None = None) -> Reply:
    finish = "tool_calls" if message.get("tool_calls") else "stop"
    return Reply(message=message, finish_reason=finish, input_tokens=30, output_tokens=5, format_error=format_error, model="s-1")


def say(text: str, *pieces: str) -> Callable[[str, Call, OnText | None], Awaitable[Reply]]:
    async def answer(student: str, call: Call, on_text: OnText | None) -> Reply:
        if on_text is not None:
            for piece in pieces:
                await on_text(piece)
        return reply_of({"content": text})

    return answer


def failing(error: Exception) -> Callable[[str, Call, OnText | None], Awaitable[Reply]]:
    async def answer(student: str, call: Call, on_text: OnText | None) -> Reply:
        raise error

    return answer


class Desk:
    """A gateway in this process with its upstream, engine, events and an HTTP client."""

    def __init__(self, gateway: Gateway, url: str, admin: str, session: aiohttp.ClientSession, upstream: Upstream, events: Events) -> None:
        self.gateway, self.url, self.admin, self.session, self.upstream, self.events = gateway, url, admin, session, upstream, events

    async def post(self, body: Any, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON or bytes, and headers."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.post(self.url + path, data=data, headers=named) as response:
            raw = await response.read()
            whole = json.loads(raw) if response.content_type == "application/json" else raw
            return response.status, whole, {name.lower(): value for name, value in response.headers.items()}

    async def chat(self, messages: Any = None, stream: bool = False, extra: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        body = {"model": "desk", "messages": messages or ASK, "stream": stream} | (extra or {})
        return await self.post(body, **headers)

    async def show(self, path: str) -> Any:
        async with self.session.get(self.admin + path) as response:
            return await response.json() if response.content_type == "application/json" else await response.text()

    def serve(self, *records: StudentState) -> None:
        """Let the routes serve what these records say."""
        states = RouteStates()
        for offset, record in enumerate(records):
            states = states.apply(offset, record)
        self.gateway.follower.follow(states)


def champion(student: str = "s-1") -> list[StudentState]:
    return [canary(student, 0.5, -1), StudentState(student=student, stage=StudentStage.CHAMPION, route="desk", prev=0)]


def canary(student: str, share: float, prev: int = -1, **more: Any) -> StudentState:
    return StudentState(student=student, stage=StudentStage.CANARY, route="desk", share=share, prev=prev, **more)


ROUTE = {
    "teacher_model": '"big-1"',
    "input_usd_per_mtok": "2.0",
    "output_usd_per_mtok": "8.0",
    "teacher_timeout_s": "2.0",
    "student_timeout_s": "2.0",
    "replica_usd_per_hour": "3.6",
}


def config_of(state: Path, url: str, more: dict[str, str] | None = None, kafka: str = "") -> Config:
    settings = ROUTE | {"teacher_url": f'"{url}"'} | (more or {})
    lines = ["[routes.desk]", *(f"{name} = {value}" for name, value in settings.items()), "[kafka]", kafka]
    path = state / "stillhouse.toml"
    state.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))
    return Config.load(path, env={}, state=state / "s")


@asynccontextmanager
async def running(
    state: Path, upstream: Upstream, engine: FakeEngine | None = None, *, kafka: str = "", **more: str
) -> AsyncIterator[Desk]:
    """A gateway on an upstream that runs already. With `kafka`, events go to the SDK's client."""
    events = Events()
    engines = {"desk": engine} if engine else {}
    gateway = Gateway(config_of(state, upstream.url, more, kafka), engines, sink=None if kafka else events, follow=False)
    url, admin = await gateway.start(Ports())
    async with aiohttp.ClientSession() as session:
        try:
            yield Desk(gateway, url, admin, session, upstream, events)
        finally:
            await gateway.stop()


class Process:
    """`python -m stillhouse.serving.gateway`."""

    def __init__(self, config: Config, bootstrap: str, *arguments: str) -> None:
        command = [sys.executable, "-m", "stillhouse.serving.gateway", "--config", str(config.path), "--state", str(config.state)]
        self.log = config.state.parent / f"gateway-{os.urandom(3).hex()}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--bootstrap-servers", bootstrap, *arguments], stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self._reap()
            raise AssertionError(self.log.read_text()[-3000:])
        self.ready: dict[str, Any] = json.loads(line)

    def kill(self) -> None:
        self.process.kill()
        self._reap()

    def stop(self) -> int:
        self.process.terminate()
        return self._reap()

    def _reap(self) -> int:
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.wait(60)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self._reap()


async def settled(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Let the loop run until a condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), 0.01)
