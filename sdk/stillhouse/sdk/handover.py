"""The agent's side of the hand-over: a snapshot and a bounded queue that neither blocks nor raises.

A snapshot is the JSON text of what the agent passed: about 1 µs for a kilobyte, deep, and no later change of the agent's
own objects can reach it. Everything dearer (messages, redaction, Avro) is the background thread's.
"""

from collections.abc import Callable, Mapping
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, NamedTuple

import msgspec

from stillhouse.schemas.events import AgentEvent


class Draft(msgspec.Struct, frozen=True, array_like=True):
    """What the agent's thread writes down of an event. `fields` are as the agent passed them.

    Args:
        kind: start, step, end, feedback, report; or event, with the whole event in `fields`.
        event_id: a UUIDv7, made at emit.
        trajectory_id: of the trajectory.
        occurred_at: microseconds since the epoch, taken at emit.
        fields: the body's raw fields.
        policy: this event's own policy, or None for the client's.
    """

    kind: str
    event_id: str
    trajectory_id: str
    occurred_at: int
    fields: Any
    policy: Any = None


class CleanEvent(NamedTuple):
    """The JSON text of an event whose secrets are out. `Client.redact` makes it; `emit` takes it."""

    data: bytes


class Item(NamedTuple):
    """One place in the queue: a snapshot and when it was taken (monotonic seconds), or a call for the thread to make.

    `clean` is the snapshot of an event that was redacted before.
    """

    since: float
    snapshot: bytes
    call: Callable[[], None] | None = None
    clean: bool = False


def _plain(value: Any) -> Any:
    """Objects of other libraries as JSON-able values (pydantic's models, numpy's scalars and arrays, mappings, exceptions)."""
    for method in ("model_dump", "tolist"):
        if callable(convert := getattr(value, method, None)):
            return convert()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    raise TypeError(f"a {type(value).__name__} cannot be part of an event")


_encode = msgspec.json.Encoder(enc_hook=_plain).encode


def snapshot(draft: Draft | AgentEvent | CleanEvent) -> bytes:
    """A deep copy, as JSON text.

    Raises:
        TypeError, ValueError, RecursionError: something in it cannot be part of an event; or what an object's own conversion raises.
    """
    if isinstance(draft, CleanEvent):
        return draft.data
    try:
        return _encode(draft)
    except UnicodeEncodeError:  # a lone surrogate, which models and tools do produce, and which UTF-8 cannot hold
        return _encode(without_surrogates(msgspec.to_builtins(draft, enc_hook=_plain)))


def without_surrogates(value: Any) -> Any:
    """The same JSON-able value, with pairs joined and each lone surrogate replaced by U+FFFD."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {without_surrogates(k): without_surrogates(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_surrogates(v) for v in value]
    return value


class Handover:
    """A queue bounded in events and in bytes.

    `put` takes no lock that another thread could hold for long, and is reentrant (signal handlers, finalizers): SimpleQueue is
    both. The byte bound may be passed by one event per emitting thread, because its sum is kept without a lock.
    """

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self._queue: SimpleQueue[Item] = SimpleQueue()
        self._max_events, self._max_bytes = max_events, max_bytes
        self._bytes = 0
        self._taken = 0
        self._calls = 0

    def put(self, data: bytes, clean: bool = False) -> bool:
        """Queue a snapshot; False when the queue is full."""
        if self._queue.qsize() >= self._max_events or self._bytes + len(data) > self._max_bytes:
            return False
        self._bytes += len(data)
        self._queue.put(Item(monotonic(), data, clean=clean))
        return True

    def call(self, function: Callable[[], None]) -> None:
        """Have the thread call something once it has taken all that was queued before. Not counted against the bounds."""
        self._queue.put(Item(monotonic(), b"", function))

    def take(self, limit: int, wait: float) -> list[Item]:
        """Up to `limit` items; waits up to `wait` seconds for the first. For the background thread only."""
        items: list[Item] = []
        try:
            items.append(self._queue.get(timeout=wait) if wait > 0 else self._queue.get_nowait())
            while len(items) < limit:
                items.append(self._queue.get_nowait())
        except Empty:
            self._bytes = 0  # so that a sum lost between two threads does not last
        else:
            self._bytes = max(0, self._bytes - sum(len(item.snapshot) for item in items))
        calls = sum(item.call is not None for item in items)
        self._calls += calls
        self._taken += len(items) - calls
        return items

    @property
    def accepted(self) -> int:
        """Events that were ever queued (a call still in the queue counts until it is taken)."""
        return self._taken + self._queue.qsize()

    @property
    def waiting(self) -> int:
        """Items in the queue."""
        return self._queue.qsize()
