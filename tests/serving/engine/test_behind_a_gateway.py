"""A gateway with a real engine: a student is brought, answers, hands over what it cannot do, and is taken away."""

import json
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from stillhouse.schemas.events import PolicyRole
from stillhouse.schemas.facts import StudentStage, StudentState
from stillhouse.serving.gateway.engine import HttpEngine
from tests.serving.gateway.world import Desk, FakeEngine, Upstream, champion, settled
from tests.serving.gateway.world import running as gateway
from tests.support.engines import LONG, SYSTEM, Family, Running

pytestmark = [pytest.mark.model, pytest.mark.timeout(900)]


def asking(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]


async def listed(running: Running) -> set[str]:
    async with aiohttp.ClientSession() as session, session.get(f"{running.url}/v1/models") as answer:
        return {model["id"] for model in (await answer.json())["data"]}


def spoken(stream: bytes) -> str:
    """The text of a streamed answer."""
    events = [json.loads(line[6:]) for line in stream.split(b"\n") if line.startswith(b"data: {")]
    return "".join(c["delta"].get("content") or "" for e in events for c in e["choices"])


async def test_a_champion_serves_and_leaves(tmp_path: Path, running: Running, family: Family) -> None:
    engine: Any = HttpEngine(running.url, family.students)
    async with Upstream().running() as upstream, gateway(tmp_path, upstream, cast(FakeEngine, engine), holdback="0.0") as desk:
        status, _, headers = await desk.chat(asking("Where is it?"))
        assert (status, headers["x-stillhouse-variant"]) == (200, "teacher")
        records = champion(family.child)
        desk.serve(*records)
        await settled(lambda: cast(bool, engine.ready(family.child)), 60)
        await _answers(desk, family)
        desk.serve(*records, StudentState(student=family.child, stage=StudentStage.ROLLED_BACK, route="desk", prev=1))
        _, _, headers = await desk.chat(asking("Where is it?"))
        assert headers["x-stillhouse-variant"] == "teacher"
        await settled(lambda: not desk.gateway.follower._held, 60)
        assert family.child not in await listed(running)


async def _answers(desk: Desk, family: Family) -> None:
    status, said, headers = await desk.chat(asking("Cancel 17."))
    (call,) = said["choices"][0]["message"]["tool_calls"]
    assert (status, headers["x-stillhouse-variant"]) == (200, family.child)
    assert call["function"] == {"name": "cancel", "arguments": '{"order":"17"}'}
    status, said, headers = await desk.chat(asking("Where is it?"), stream=True)
    assert (headers["x-stillhouse-variant"], spoken(said)) == (family.child, LONG)
    before = len(desk.upstream.requests)
    status, said, headers = await desk.chat(asking("Break 17."), stream=True)
    assert (status, headers["x-stillhouse-fallback"]) == (200, "format")
    assert spoken(said).startswith("It is on its way") and len(desk.upstream.requests) == before + 1
    failed: Any
    answered: Any
    failed, answered = desk.events.events[-2:]
    assert (failed.policy.role, failed.policy.model) == (PolicyRole.STUDENT, family.child)
    assert "JSON" in failed.body.error and failed.body.action.content.startswith('{"name": "cancel"')
    assert answered.policy.role is PolicyRole.TEACHER
