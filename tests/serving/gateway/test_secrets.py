"""Nothing that the gateway writes holds a secret of a request, whatever becomes of the request, the broker and the process."""

import asyncio
import os
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from stillhouse.schemas import codec
from stillhouse.schemas.events import AgentEvent, StepTaken, TrajectoryStarted
from stillhouse.schemas.topics import EVENTS
from stillhouse.sdk.client import Client
from stillhouse.sdk.config import Config
from tests.serving.gateway.world import Process, Upstream, champion, completion, config_of, running
from tests.support import ingest
from tests.support.brokers import start_embedded
from tests.support.waiting import until_async

ASKED = "sk-proj-AbCdEfGhIjKlMnOpQrStUvWx1234567890"
ANSWERED = "ghp_abcdefghij0123456789ABCDEFGHIJabcdef"
NAMED = "correct-horse-battery-staple"
SECRETS = (ASKED, ANSWERED, NAMED)
TOOL = {"type": "function", "function": {"name": "login", "description": f"Uses {ASKED}", "parameters": {"type": "object"}}}
ASK = [{"role": "system", "content": f"The key is {ASKED}."}, {"role": "user", "content": f"Use {ASKED}, I say."}]
CALL = {"id": "c1", "type": "function", "function": {"name": "login", "arguments": f'{{"password": "{NAMED}"}}'}}


async def indiscreet(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response(completion({"content": f"I found {ANSWERED}.", "tool_calls": [CALL]}))


def _written(folder: Path) -> bytes:
    return b"\0".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def _logged(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.glob("gateway-*.log"))


async def _ask(url: str, **headers: str) -> dict[str, str]:
    body = {"model": "desk", "messages": ASK, "tools": [TOOL], "user": f"me:{ASKED}"}
    async with aiohttp.ClientSession() as session, session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as response:
        assert response.status == 200 and ANSWERED in await response.text()
        return dict(response.headers)


def _assert_clean(config: Config, *, sent: bool = False) -> None:
    written = _written(config.state)
    assert sent or b"[redacted:" in written  # the events are there, until they are sent again
    assert not [secret for secret in SECRETS if secret.encode() in written or secret.encode() in _logged(config.state.parent)]


async def test_no_secret_is_in_the_state_folder_while_it_runs_nor_after_kill_9(tmp_path: Path, upstream: Upstream) -> None:
    upstream.behave = indiscreet
    broker = start_embedded(tmp_path / "b")
    topics = ingest.Topics(broker.bootstrap)
    broker.stop()
    config = config_of(tmp_path / "g", upstream.url, {"unit": '"user"'}, kafka=f'prefix = "{topics.kafka.prefix}"')
    with Process(config, broker.bootstrap) as gateway:
        run = (await _ask(gateway.ready["url"]))["x-stillhouse-trajectory"]
        outcome = {"trajectory": run, "outcome": "success", "label": f"though it told {ANSWERED}", "version": ASKED}
        async with aiohttp.ClientSession() as session, session.post(f"{gateway.ready['url']}/v1/stillhouse/outcomes", json=outcome) as said:
            assert said.status == 201
        _assert_clean(config)
        gateway.kill()
        _assert_clean(config)
    broker.restart()
    with Process(config, broker.bootstrap) as gateway:
        await until_async(lambda: len(topics.read(EVENTS)) >= 3, "the three events")
        _assert_clean(config, sent=True)
        assert gateway.stop() == 0
    _assert_clean(config, sent=True)
    events = {event.event_id: event for event in (codec.decode(record.value(), AgentEvent) for record in topics.read(EVENTS))}
    broker.stop()
    assert len(events) == 3
    [start] = [event.body for event in events.values() if isinstance(event.body, TrajectoryStarted)]
    [step] = [event.body for event in events.values() if isinstance(event.body, StepTaken)]
    assert start.system_prompt == "The key is [redacted:openai-key]."
    assert step.action.content == "I found [redacted:github-token]."
    assert step.action.tool_calls[0].arguments == {"password": "[redacted:secret]"}


async def test_what_the_client_counts_is_redacted_once(tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    clients: list[Client] = []

    def client(**named: Any) -> Client:
        clients.append(Client(**named))
        return clients[0]

    monkeypatch.setattr("stillhouse.serving.gateway.server.Client", client)
    upstream.behave = indiscreet
    broker = start_embedded(tmp_path / "b")
    topics = ingest.Topics(broker.bootstrap)
    kafka = f'bootstrap_servers = "{broker.bootstrap}"\nprefix = "{topics.kafka.prefix}"'
    async with running(tmp_path, upstream, kafka=kafka) as desk:
        await _ask(desk.url)
        found = dict(clients[0].stats.redacted)
        # One in the prompt, one in the tool, one in the question; one in the answer's text, one in its call.
        assert found == {"openai-key": 3, "github-token": 1, "secret": 1}
        assert await asyncio.to_thread(clients[0].flush) == 0
        assert clients[0].stats.sent == 2 and clients[0].stats.redacted == found and not clients[0].stats.rejected
    broker.stop()


async def test_an_id_that_holds_a_secret_is_refused_and_nothing_is_written(tmp_path: Path, upstream: Upstream) -> None:
    async with running(tmp_path, upstream) as desk:
        status, body, _ = await desk.chat(x_stillhouse_trajectory=f"run:{ASKED}")
        assert status == 400 and body["error"]["code"] == "invalid_header" and ASKED not in str(body)
    assert not upstream.requests and ASKED.encode() not in _written(tmp_path)


async def test_a_unit_that_holds_a_secret_keeps_its_arm_under_another_name(tmp_path: Path, upstream: Upstream) -> None:
    async with running(tmp_path, upstream, unit='"user"') as desk:
        desk.serve(*champion())
        for _ in range(3):
            assert (await desk.chat(x_stillhouse_user=ASKED))[0] == 200
        assert (await desk.chat(x_stillhouse_user="someone-else"))[0] == 200
        units = [event.assignment.unit for event in desk.events.events if event.assignment and isinstance(event.body, StepTaken)]
        assert len(units) == 4 and len(set(units)) == 2
    assert ASKED.encode() not in _written(tmp_path)


async def test_a_crash_is_logged_without_what_it_quotes(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(tmp_path, upstream) as desk:
        monkeypatch.setattr(desk.gateway.desk, "run", lambda *_: os.environ[ASKED])
        assert (await desk.chat())[0] == 500
    logged = "".join(capsys.readouterr())
    assert "KeyError" in logged and ASKED not in logged
