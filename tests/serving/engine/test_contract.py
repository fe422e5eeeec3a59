"""What every engine must do, shown on each: load, attest, reply, hold back, refuse. The same tests for ours and for vLLM."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.messages import Message
from stillhouse.schemas.openai import message_from_openai
from stillhouse.serving.gateway.backend import Call, ContextFullError, EngineError, Verdict
from stillhouse.serving.gateway.engine import HttpEngine
from tests.support.engines import LONG, Family, Running, conversation, copy_of, without_upper_layer

pytestmark = [pytest.mark.model, pytest.mark.timeout(900)]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def engine(running: Running, family: Family, clock: Clock) -> AsyncIterator[HttpEngine]:
    found = HttpEngine(running.url, family.students, clock=clock, watch_every_s=3600)
    yield found
    for name in (family.parent, family.child):
        await found.unload(name)
    await found.close()


@pytest.fixture
async def serving(engine: HttpEngine, family: Family) -> HttpEngine:
    """With the child loaded and attested."""
    await engine.load(family.child)
    assert (await engine.attest(family.child)).verdict is Verdict.ACCEPTED
    return engine


def call(asked: str, **changes: Any) -> Call:
    made: dict[str, Any] = {"route": "desk", "tenant": "t", "trajectory": "run-1", "step": 0, "body": {}, "messages": conversation(asked)}
    return Call(**(made | changes))


async def both_ways(engine: HttpEngine, family: Family, asked: str) -> Any:
    """The reply in one piece and streamed, which must be the same; and the pieces."""
    pieces: list[str] = []

    async def show(text: str) -> None:
        pieces.append(text)

    whole = await engine.reply(family.child, call(asked), None)
    streamed = await engine.reply(family.child, call(asked, stream=True), show)
    same = ("message", "finish_reason", "format_error", "model", "input_tokens", "output_tokens")
    assert {name: getattr(streamed, name) for name in same} == {name: getattr(whole, name) for name in same}
    return whole, pieces


async def test_nothing_is_ready_before_it_is_loaded_and_attested(engine: HttpEngine, family: Family) -> None:
    assert not engine.covers(family.child, call("Thanks."))
    with pytest.raises(EngineError, match="not loaded"):
        await engine.reply(family.child, call("Thanks."), None)
    await engine.load(family.child)
    assert not engine.ready(family.child)
    found = await engine.attest(family.child)
    assert (found.verdict, engine.ready(family.child)) == (Verdict.ACCEPTED, True)
    # Probes were scored in float32; a server that multiplies in bfloat16 is a hundredth of a nat off. The rule allows 0.1.
    assert found.numbers["student"] < 0.03 < 0.5 < min(found.numbers["parent"], found.numbers["base"])
    await engine.unload(family.child)
    assert not engine.ready(family.child)


async def test_loading_again_and_unloading_twice_are_no_errors(engine: HttpEngine, running: Running, family: Family) -> None:
    running.post("load_lora_adapter", lora_name=family.child, lora_path=str(family.folder(family.child)))  # another gateway was first
    await engine.load(family.child)
    await engine.load(family.child)
    assert (await engine.attest(family.child)).verdict is Verdict.ACCEPTED
    await engine.unload(family.child)
    await engine.unload(family.child)


async def test_a_call_is_held_until_it_parses(serving: HttpEngine, family: Family) -> None:
    reply, pieces = await both_ways(serving, family, "Cancel 17.")
    assert pieces == []
    (made,) = message_from_openai(reply.message).tool_calls
    assert (made.name, made.arguments, reply.finish_reason) == ("cancel", {"order": "17"}, "tool_calls")
    assert (reply.format_error, reply.model) == (None, family.child)
    assert (reply.input_tokens, reply.output_tokens) == (26, 17)


async def test_text_streams_after_its_first_tokens(serving: HttpEngine, family: Family) -> None:
    reply, pieces = await both_ways(serving, family, "Where is it?")
    assert reply.message["content"] == "".join(pieces) == LONG
    assert (reply.finish_reason, reply.format_error) == ("stop", None)
    assert len(pieces) > 10 and len(pieces[0]) > 20  # the beginning at once, then as it comes


async def test_a_call_after_text_is_held_and_the_text_is_whole(serving: HttpEngine, family: Family) -> None:
    reply, pieces = await both_ways(serving, family, "Explain and cancel 17.")
    assert reply.message["content"] == "".join(pieces) == LONG
    assert [c.name for c in message_from_openai(reply.message).tool_calls] == ["cancel"]


async def test_a_short_text_is_only_returned(serving: HttpEngine, family: Family) -> None:
    reply, pieces = await both_ways(serving, family, "Thanks.")
    assert (reply.message["content"], reply.finish_reason, pieces) == ("Bye.", "stop", [])


async def test_a_malformed_action_is_a_reply_with_its_reason(serving: HttpEngine, family: Family) -> None:
    reply, pieces = await both_ways(serving, family, "Break 17.")
    assert reply.format_error is not None and "JSON" in reply.format_error
    assert reply.message["content"].startswith('{"name": "cancel"') and "tool_calls" not in reply.message
    assert pieces == []


async def test_the_callers_bound_holds(serving: HttpEngine, family: Family) -> None:
    reply = await serving.reply(family.child, call("Where is it?", max_tokens=5), None)
    assert (reply.finish_reason, reply.output_tokens) == ("length", 5)
    assert LONG.startswith(reply.message["content"])


async def test_a_full_context_is_said(serving: HttpEngine, family: Family) -> None:
    with pytest.raises(ContextFullError, match="room"):
        await serving.reply(family.child, call("x " * 400), None)
    with pytest.raises(ContextFullError, match="room"):  # rendered in a thread
        await serving.reply(family.child, call("word " * 5000), None)


async def test_a_reply_that_the_context_cuts_is_no_reply(engine: HttpEngine, family: Family) -> None:
    await engine.load(family.child)
    held = engine._held[family.child]
    engine._held[family.child] = replace(held, context=30)
    with pytest.raises(ContextFullError, match="does not fit"):
        await engine.reply(family.child, call("Where is it?"), None)


async def test_coverage_is_the_students_own(serving: HttpEngine, family: Family) -> None:
    assert serving.covers(family.child, call("Anything."))
    tool = {"type": "function", "function": {"name": "f"}}
    assert not serving.covers(family.child, call("Anything.", tools=(tool,)))
    seen: list[dict[str, Any]] = [{"type": "text", "text": "What is this?"}]
    for content, covered in ((seen, True), ([*seen, {"type": "image_url", "image_url": {"url": "data:,"}}], False)):
        messages = (conversation("")[0], Message(role="user", content=content))
        assert serving.covers(family.child, call("", messages=messages)) is covered


Spoil = Callable[[Family, Path], Path]


def swapped(family: Family, to: Path) -> Path:
    """Another student's weights."""
    other = copy_of(family.folder(family.child), to)
    from safetensors.torch import load_file, save_file

    weights = other / "adapter_model.safetensors"
    save_file({name: -tensor if "lora_B" in name else tensor for name, tensor in load_file(weights).items()}, weights)
    (other / "manifest.json").unlink()
    return other


def truncated(family: Family, to: Path) -> Path:
    other = without_upper_layer(copy_of(family.folder(family.child), to))
    (other / "manifest.json").unlink()
    return other


def stale(family: Family, to: Path) -> Path:
    """Its parent, which was served before."""
    return family.folder(family.parent)


@pytest.mark.parametrize("spoil", [swapped, truncated, stale])
async def test_what_is_not_the_student_is_refused(
    serving: HttpEngine, running: Running, family: Family, tmp_path: Path, spoil: Spoil, clock: Clock
) -> None:
    running.replace(family.child, spoil(family, tmp_path / "other"))
    await serving.look()
    assert serving.ready(family.child)  # an hour has not passed
    clock.now += 3600
    with structlog.testing.capture_logs() as logs:
        await serving.look()
    assert not serving.ready(family.child)
    found = serving.attestations[family.child]
    assert found.verdict is Verdict.REFUSED and "nats a token" in found.reason
    assert [e["event"] for e in logs][:1] == ["attestation_refused"]
    with pytest.raises(PermanentError, match=r"was refused.*Restart the engine"):
        await serving.load(family.child)


async def test_a_name_that_means_another_folder_is_refused_at_once(
    engine: HttpEngine, running: Running, family: Family, tmp_path: Path
) -> None:
    running.post("load_lora_adapter", lora_name=family.child, lora_path=str(family.folder(family.parent)))
    with pytest.raises(PermanentError, match=r"another folder|other content"):
        await engine.load(family.child)
    assert not engine.ready(family.child)


async def test_a_students_unload_is_seen(serving: HttpEngine, running: Running, family: Family) -> None:
    running.post("unload_lora_adapter", lora_name=family.child)
    with pytest.raises(EngineError) as caught:
        await serving.reply(family.child, call("Thanks."), None)
    assert caught.value.reason == "away" and not serving.ready(family.child)
    await serving.load(family.child)
    await serving.attest(family.child)
    running.post("unload_lora_adapter", lora_name=family.child)
    await serving.look()
    assert not serving.ready(family.child)
