"""Engines that misbehave: every failure is an `EngineError` with its reason, and nothing unproven is ready."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.student_folder import load_probes
from stillhouse.serving.gateway.backend import EngineError, Verdict
from stillhouse.serving.gateway.engine import HttpEngine
from tests.serving.engine.test_contract import Clock, call
from tests.support.engines import LONG, Family
from tests.support.engines_fake import Behaviour, FakeEngine, answers, half_a_stream, hangs, resets
from tests.support.waiting import until_async

pytestmark = pytest.mark.model


@pytest.fixture
async def fake(family: Family) -> AsyncIterator[FakeEngine]:
    found = FakeEngine()
    found.root, found.probes = str(family.base), load_probes(family.folder(family.child))
    async with found.running():
        yield found


@pytest.fixture
async def engine(fake: FakeEngine, family: Family) -> AsyncIterator[HttpEngine]:
    found = HttpEngine(fake.url, family.students, clock=Clock(), watch_every_s=3600)
    await found.load(family.child)
    yield found
    await found.close()


async def shown(text: str) -> None:
    return


@pytest.mark.parametrize(
    ("behave", "reason"),
    [
        (answers(503, b"busy"), "busy"),
        (answers(429, b"{}"), "busy"),
        (answers(500, b"<html>"), "upstream"),
        (answers(400, b'{"error": {"message": "no"}}'), "upstream"),
        (answers(404, b'{"error": {"message": "The model does not exist."}}'), "away"),
        (answers(200, b"not json"), "upstream"),
        (answers(200, b'{"choices": []}'), "upstream"),
        (answers(200, b'{"choices": [{"text": 7}]}'), "upstream"),
        (answers(200, b'{"choices": [{"text": "x", "finish_reason": "abort"}]}'), "upstream"),
        (resets, "away"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_failure_has_its_reason(
    engine: HttpEngine, fake: FakeEngine, family: Family, behave: Behaviour, reason: str, streamed: bool
) -> None:
    fake.behave = behave
    with pytest.raises(EngineError) as caught:
        await engine.reply(family.child, call("Thanks."), shown if streamed else None)
    assert caught.value.reason == reason and fake.url in str(caught.value)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"data: [DONE]\n\n",
        b"data: {\n\n",
        b'data: {"error": {"message": "dead"}}\n\n',
        b'data: {"choices": [{"text": "x"}]}\n\n',
        b"\xff" * 99,
    ],
)
async def test_a_broken_stream_is_no_reply(engine: HttpEngine, fake: FakeEngine, family: Family, said: bytes) -> None:
    fake.behave = answers(200, said, "text/event-stream")
    with pytest.raises(EngineError) as caught:
        await engine.reply(family.child, call("Thanks."), shown)
    assert caught.value.reason == "upstream"


async def test_a_stream_that_breaks_after_it_was_shown_fails_too(engine: HttpEngine, fake: FakeEngine, family: Family) -> None:
    fake.behave, pieces = half_a_stream, list[str]()

    async def show(text: str) -> None:
        pieces.append(text)

    with pytest.raises(EngineError):
        await engine.reply(family.child, call("Thanks."), show)
    assert "".join(pieces).split() == ["word"] * 40


async def test_a_caller_that_leaves_is_not_the_engines_failure(engine: HttpEngine, fake: FakeEngine, family: Family) -> None:
    fake.pieces = [f"{word} " for word in LONG.split() * 3]

    async def leave(text: str) -> None:
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError, match="gone"):
        await engine.reply(family.child, call("Thanks."), leave)


async def test_a_hanging_engine_ends_with_the_callers_patience(engine: HttpEngine, fake: FakeEngine, family: Family) -> None:
    fake.behave = hangs
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await engine.reply(family.child, call("Thanks."), None)


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_engine_that_does_not_count_is_counted(engine: HttpEngine, fake: FakeEngine, family: Family, streamed: bool) -> None:
    on_text = shown if streamed else None
    counted = await engine.reply(family.child, call("Thanks."), on_text)
    assert (counted.output_tokens, counted.cached_tokens) == (3, 11)
    fake.usage = False
    reply = await engine.reply(family.child, call("Thanks."), on_text)
    assert (reply.message["content"], reply.cached_tokens) == ("Bye.", 0)
    assert reply.output_tokens == (3 if streamed else 2)  # in one piece there is no telling
    assert reply.input_tokens == counted.input_tokens == len(fake.asked[-1]["prompt"])


async def test_what_the_caller_asks_of_sampling_goes_on(engine: HttpEngine, fake: FakeEngine, family: Family) -> None:
    body = {"top_p": 0.5, "seed": 7, "stop": ["x"], "user": "me", "frequency_penalty": None}
    await engine.reply(family.child, call("Thanks.", body=body, temperature=0.7, max_tokens=9), None)
    asked = fake.asked[-1]
    assert {k: asked.get(k) for k in ("top_p", "seed", "stop", "temperature", "max_tokens")} == {
        "top_p": 0.5, "seed": 7, "stop": ["x"], "temperature": 0.7, "max_tokens": 9,
    }  # fmt: skip
    assert not {"user", "frequency_penalty"} & set(asked)
    await engine.reply(family.child, call("Thanks."), None)
    assert fake.asked[-1]["temperature"] == 0.0


@pytest.mark.parametrize(("served", "verdict"), [("student", Verdict.ACCEPTED), ("parent", Verdict.REFUSED)])
async def test_without_log_probabilities_greedy_actions_decide(
    engine: HttpEngine, fake: FakeEngine, family: Family, served: str, verdict: Verdict
) -> None:
    fake.logprobs, fake.scored = False, served
    found = await engine.attest(family.child)
    assert found.verdict is verdict and "greedy actions equal, without log-probabilities" in found.reason
    assert found.numbers["actions"] >= 14


async def test_a_busy_engine_is_not_attested_and_not_refused(engine: HttpEngine, fake: FakeEngine, family: Family) -> None:
    fake.behave = answers(503, b"busy")
    with pytest.raises(EngineError, match="busy"):
        await engine.attest(family.child)
    fake.behave = None
    assert (await engine.attest(family.child)).verdict is Verdict.ACCEPTED


async def test_after_a_restart_nothing_is_ready_until_it_is_attested(engine: HttpEngine, fake: FakeEngine, family: Family) -> None:
    await engine.attest(family.child)
    assert engine.ready(family.child)
    fake.started = 200.0  # and another gateway has loaded the student again
    await engine.look()
    assert not engine.ready(family.child)
    fake.scored = "parent"
    assert (await engine.attest(family.child)).verdict is Verdict.REFUSED
    with pytest.raises(PermanentError, match="Restart the engine"):
        await engine.load(family.child)
    fake.started, fake.scored = 300.0, "student"
    await engine.load(family.child)
    assert (await engine.attest(family.child)).verdict is Verdict.ACCEPTED


async def test_a_restart_is_seen_when_another_student_is_loaded(engine: HttpEngine, fake: FakeEngine, family: Family) -> None:
    await engine.attest(family.child)
    fake.started = 200.0
    await engine.load(family.parent)
    assert not engine.ready(family.child)


async def test_an_engine_that_went_away_is_not_trusted_when_it_is_back(fake: FakeEngine, family: Family) -> None:
    other = FakeEngine()
    other.root, other.probes, other.started = fake.root, fake.probes, None
    async with other.running():
        engine = HttpEngine(other.url + "/v1", family.students, watch_every_s=0.01)
        await engine.load(family.child)
        await engine.attest(family.child)
    await until_async(lambda: not engine.ready(family.child), "the watch sees that the engine is away", 20)
    with pytest.raises(EngineError) as caught:
        await engine.load(family.child)
    assert caught.value.reason == "away"
    async with other.running(int(other.url.rsplit(":", 1)[1])):
        await engine.load(family.child)
        assert (await engine.attest(family.child)).verdict is Verdict.ACCEPTED
        await engine.close()


async def test_an_engine_that_may_not_load_says_what_it_needs(fake: FakeEngine, family: Family) -> None:
    fake.adapters = False
    engine = HttpEngine(fake.url, family.students)
    with pytest.raises(PermanentError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
        await engine.load(family.child)
    await engine.close()


async def test_the_body_is_json_of_ids(engine: HttpEngine, fake: FakeEngine, family: Family) -> None:
    await engine.reply(family.child, call("Thanks."), None)
    asked = fake.asked[-1]
    assert all(type(token) is int for token in asked["prompt"]) and asked["model"] == family.child
    assert json.dumps(asked["stop_token_ids"]) == "[2]"
