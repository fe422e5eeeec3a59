"""The gateway's own traffic as events. Never blocks or fails a request; survives kill -9; writes down nothing with a secret in it.

The SDK promises an event on disk or with the broker within a second of emit. What the gateway's memory committed with the reply covers
that second: it is kept for `KEEP_S`, and the next process sends again what it finds. Ids are derived, so twice is once. What was sent
again is forgotten as soon as the SDK has it on disk or with the broker, some events at a time: a process that lives for a second gets on.
Since the memory is a file, events are redacted before it, by the SDK's client, which then takes them as they are.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
import structlog

from stillhouse.schemas.events import AgentEvent
from stillhouse.sdk.handover import CleanEvent
from stillhouse.serving.gateway.instruments import Instruments
from stillhouse.serving.gateway.memory import Memory

KEEP_S = 30.0
AGAIN = 500
"""Events of earlier processes that are sent at once: a part of the SDK's queue, the rest of which is for what happens now."""

log = structlog.get_logger()
_decode = msgspec.json.Decoder(AgentEvent).decode


class Sink(Protocol):
    """Where events go: the SDK's client."""

    def redact(self, event: AgentEvent) -> CleanEvent | None:
        """Take the secrets out; None when the event is refused."""
        ...

    def emit(self, event: CleanEvent) -> bool:
        """Hand over an event without waiting; False when it was refused."""
        ...

    def when_kept(self, call: Callable[[], None]) -> None:
        """Call, from any thread, once all that was emitted before is on disk or acknowledged."""
        ...


class Capture:
    """Events, into the memory and out.

    Args:
        sink: takes them.
        memory: keeps them for a while.
        instruments: counts what the sink refused.
        now: microseconds since the epoch.
    """

    def __init__(self, sink: Sink, memory: Memory, instruments: Instruments, now: Callable[[], int]) -> None:
        self._sink, self._memory, self._instruments, self._now = sink, memory, instruments, now
        self._trimmed = now()
        self._before = memory.last_event()  # what earlier processes left; forgotten only when it is kept elsewhere

    def redact(self, events: Sequence[AgentEvent]) -> list[CleanEvent]:
        """The events as they may be written and sent, without those that may not (counted)."""
        clean = [event for event in map(self._sink.redact, events) if event is not None]
        if refused := len(events) - len(clean):
            self._instruments.count("capture_refused_total", amount=refused)
        return clean

    def keep(self, events: Sequence[CleanEvent]) -> None:
        """Write events into the memory's transaction."""
        now = self._now()
        for event in events:
            self._memory.add_event(now, event.data)
        if now - self._trimmed > KEEP_S * 1e6 / 4:
            self._trimmed = now
            self._memory.forget_events(round(now - KEEP_S * 1e6), self._before)

    def send(self, events: Sequence[CleanEvent]) -> None:
        """Hand events over."""
        for event in events:
            if not self._sink.emit(event):
                self._instruments.count("capture_refused_total")

    async def recover(self) -> int:
        """Send what the processes before this one may not have sent; gives how many events, once they are kept elsewhere and forgotten.

        Raises:
            sqlite3.Error: the memory fails.
        """
        sent = 0
        while rows := self._memory.events(self._before, AGAIN):
            taken = self._again([data for _, data in rows])
            await self._kept()
            sent, last = sent + taken, rows[taken - 1][0]
            self._memory.forget_events_to(last)
            if last == self._before:
                self._before = 0  # numbers of an empty table begin anew
            await self._memory.committed()
        return sent

    async def _kept(self) -> None:
        """Wait until what was handed over so far would outlive this process."""
        loop, kept = asyncio.get_running_loop(), asyncio.Event()

        def say() -> None:
            loop.call_soon_threadsafe(kept.set)

        self._sink.when_kept(say)
        await kept.wait()

    def _again(self, found: Sequence[bytes]) -> int:
        """Hand over until there is no room; gives how many events are done with. Today's rules may be stricter than those of then."""
        for place, data in enumerate(found):
            if not all(map(self._sink.emit, self.redact([_decode(data)]))):
                if place:
                    return place
                self._instruments.count("capture_refused_total")  # all room was its, and it was too large
        return len(found)
