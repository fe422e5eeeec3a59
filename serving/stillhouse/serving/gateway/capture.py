"""The gateway's own traffic as events. Never blocks or fails a request; survives kill -9.

The SDK promises an event on disk or with the broker within a second of emit. What the gateway's memory committed with the reply covers
that second: it is kept for `KEEP_S`, and the next process sends again what it finds. Ids are derived, so twice is once.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
import structlog

from stillhouse.schemas.events import AgentEvent
from stillhouse.serving.gateway.instruments import Instruments
from stillhouse.serving.gateway.memory import Memory

KEEP_S = 30.0
log = structlog.get_logger()
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(AgentEvent).decode


class Sink(Protocol):
    """Where events go: the SDK's client."""

    def emit(self, event: AgentEvent) -> bool:
        """Hand over an event without waiting; False when it was refused."""
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

    def keep(self, events: Sequence[AgentEvent]) -> None:
        """Write events into the memory's transaction."""
        now = self._now()
        for event in events:
            self._memory.add_event(now, _encode(event))
        if now - self._trimmed > KEEP_S * 1e6 / 4:
            self._trimmed = now
            self._memory.forget_events(round(now - KEEP_S * 1e6))

    def send(self, events: Sequence[AgentEvent]) -> None:
        """Hand events over."""
        for event in events:
            if not self._sink.emit(event):
                self._instruments.count("capture_refused_total")

    def recover(self) -> int:
        """Send what the process before this one may not have sent; gives how many events."""
        events = [_decode(data) for data in self._memory.events()]
        self.send(events)
        return len(events)
