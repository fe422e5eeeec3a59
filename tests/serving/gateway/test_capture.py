"""The gateway's outbox: what a killed process left is sent again until it is kept elsewhere, and not once more."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from stillhouse.schemas.events import AgentEvent
from stillhouse.sdk import Client, KafkaSettings
from stillhouse.sdk.handover import CleanEvent
from stillhouse.sdk.spool_folder import waiting
from stillhouse.serving.gateway import capture
from stillhouse.serving.gateway.capture import KEEP_S, Capture
from stillhouse.serving.gateway.instruments import Instruments
from stillhouse.serving.gateway.memory import Memory
from tests.serving.gateway.world import Events
from tests.support.agents import NO_BROKER
from tests.support.events import event, step
from tests.support.waiting import until, until_async

SECOND = 1_000_000


class Slow(Events):
    """A sink that keeps events only when it is told to, and has room for some at a time."""

    def __init__(self, room: int = 100) -> None:
        super().__init__()
        self.room, self.waiting = room, list[Callable[[], None]]()

    def emit(self, event: CleanEvent) -> bool:
        self.full = len(self.events) >= self.room
        return super().emit(event)

    def when_kept(self, call: Callable[[], None]) -> None:
        self.waiting.append(call)

    def keep(self) -> None:
        self.events.clear()
        self.waiting.pop(0)()


def _life(folder: Path, sink: Events, now: Callable[[], int] = lambda: 0) -> tuple[Memory, Capture]:
    memory = Memory(folder)
    return memory, Capture(sink, memory, Instruments(), now)


def _add(captured: Capture, count: int, order: int = 1) -> None:
    captured.keep([CleanEvent(msgspec.json.encode(one)) for one in _made(count, order)])


def _made(count: int, order: int = 1) -> list[AgentEvent]:
    return [event(step(n), order, at=n) for n in range(count)]


async def test_each_short_life_gets_on_and_sends_nothing_that_an_earlier_one_had_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "AGAIN", 4)
    memory, captured = _life(tmp_path, Slow())
    _add(captured, 10)
    memory.close()
    seen = []
    for again in (4, 4, 2, 0):
        memory, captured = _life(tmp_path, sink := Slow())
        recovering = asyncio.create_task(captured.recover())
        if again:
            await until_async(lambda sink=sink: len(sink.waiting) == 1, "a part is on its way")  # type: ignore[misc]
            seen += [one.event_id for one in sink.events]
            assert len(sink.events) == again
            sink.keep()
            await until_async(lambda sink=sink, done=recovering: bool(sink.waiting) or done.done(), "the next one")  # type: ignore[misc]
        else:
            assert await recovering == 0
        recovering.cancel()  # killed: the next part was never kept
        memory.close()
    assert seen == [one.event_id for one in _made(10)]


async def test_what_is_not_kept_is_neither_forgotten_nor_aged_out(tmp_path: Path) -> None:
    memory, captured = _life(tmp_path, Slow())
    _add(captured, 3)
    memory.close()
    clock = [0]
    memory, captured = _life(tmp_path, sink := Slow(room=2), lambda: clock[0])
    recovering = asyncio.create_task(captured.recover())
    await until_async(lambda: len(sink.waiting) == 1, "two are on their way")
    for number in range(3):
        clock[0] += round(KEEP_S * SECOND)
        _add(captured, 1, order=7 + number)
    assert [number for number, _ in memory.events(memory.last_event(), 99)] == [1, 2, 3, 5, 6], "of its own, what is old enough goes"
    sink.keep()
    await until_async(lambda: len(sink.waiting) == 1, "the third is")
    sink.keep()
    assert await recovering == 3
    assert [number for number, _ in memory.events(memory.last_event(), 99)] == [5, 6]
    memory.close()


async def test_with_the_broker_away_what_is_sent_again_is_in_the_spool_before_it_is_forgotten(tmp_path: Path) -> None:
    memory, captured = _life(tmp_path / "g", Slow())
    _add(captured, 5)
    memory.close()
    spool = tmp_path / "spool"
    with Client(settings=KafkaSettings(bootstrap_servers=NO_BROKER), spool=spool) as client:
        memory = Memory(tmp_path / "g")
        assert await Capture(client, memory, Instruments(), lambda: 0).recover() == 5
        assert client.stats.spooled == 5 and memory.last_event() == 0
        memory.close()
        client.close(0.1)
    assert waiting(spool) == 5


def test_a_client_says_when_it_keeps_what_was_emitted(tmp_path: Path) -> None:
    kept: list[int] = []
    with Client(settings=KafkaSettings(bootstrap_servers=NO_BROKER), spool=tmp_path / "spool") as client:
        for number in range(3):
            client.emit(event(step(number), at=number))
            client.when_kept(lambda: kept.append(client.stats.spooled))
        until(lambda: len(kept) == 3, "three are kept")
        client.close(0.1)
    assert all(found >= number for number, found in enumerate(kept, 1)), "none was said to be kept before it lay in the spool"
