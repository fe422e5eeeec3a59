"""The background thread of a client: snapshot to event, redaction, encoding, sending. Nobody else touches what it holds."""

import logging
import threading
import traceback
from collections import deque
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import uuid_utils

from stillhouse.schemas.codec import SchemaPendingError, UndecodableError, decode, encode, headers_for, schema_record
from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.events import AgentEvent, ClientReport, Policy
from stillhouse.schemas.registry import ConfluentRegistry
from stillhouse.schemas.topics import EVENT_MAX_BYTES
from stillhouse.sdk.framing import Framing
from stillhouse.sdk.handover import Handover, Item
from stillhouse.sdk.limits import Limits
from stillhouse.sdk.normalise import event_from_snapshot
from stillhouse.sdk.redaction import RedactionError, Redactor, why_refused
from stillhouse.sdk.rejected import RejectedFolder
from stillhouse.sdk.sender import Sender
from stillhouse.sdk.spool import Spool
from stillhouse.sdk.spool_folder import Parcel, parcel
from stillhouse.sdk.stats import Counters, Refusal

_log = logging.getLogger("stillhouse.sdk")
_BATCH = 200
_TICK_S, _IDLE_S, _LINGER_S = 0.02, 1.0, 1.0
_REGISTRY_WAIT_S = 0.5  # what a short life of an agent may wait for its framing
# What values raise that no event can be made of: among them numbers beyond every float, and nesting beyond the interpreter's stack.
_UNFIT = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
_RECORD_OVERHEAD = 256  # batch header and varints around key, value and headers, generously


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker needs to know; a forked child starts its own from the same."""

    kafka: dict[str, Any]
    topic: str
    schemas_topic: str
    spool: Path
    tenant: str
    agent: str
    policy: Policy
    way_in: str
    redactor: Redactor
    limits: Limits
    clock: Callable[[], int]
    registry: ConfluentRegistry | None = None


class Worker:
    """One thread's whole state.

    Args:
        setup: settings.
        handover: where events come from.
        counters: what to count on.

    Raises:
        PermanentError: the spool cannot be made, or the Kafka settings are refused.
    """

    def __init__(self, setup: Setup, handover: Handover, counters: Counters) -> None:
        self._setup, self._handover, self._counters = setup, handover, counters
        self._rejected = RejectedFolder(setup.spool / "rejected", setup.limits.rejected_bytes)
        self._spool = Spool(setup.spool, setup.limits.spool_bytes)
        self._sender = Sender(setup.kafka, self._spool, setup.limits, counters, self._refused_parcel, monotonic)
        self._framing = Framing(setup.registry, setup.topic)
        self._deadline: float | None = None
        self._flushes: list[threading.Event] = []
        self._kept: deque[tuple[float, Callable[[], None]]] = deque()
        self._reported: dict[str, int] = {}
        self._report_at = monotonic() + setup.limits.report_every_s
        self._active_at = monotonic()
        self.left = 0  # events on their way, as of the last round

    def run(self) -> None:
        """The thread's life: rounds until `stop`, then what `stop` allows."""
        self._guarded(self._adopt)
        self._guarded(self._announce)
        while self._deadline is None:
            self._guarded(self._round)
        self._guarded(self._finish)
        for waiter in self._flushes:
            waiter.set()

    def flush(self, waiter: threading.Event) -> None:
        """On the thread: set `waiter` when nothing is left."""
        self._flushes.append(waiter)

    def when_kept(self, call: Callable[[], None]) -> None:
        """On the thread: call when nothing that was emitted until now would go with the process."""
        self._kept.append((monotonic(), call))

    def stop(self, deadline: float) -> None:
        """On the thread: end, waiting for acknowledgements until `deadline` (monotonic)."""
        self._deadline = deadline

    def forget(self) -> None:
        """In a forked child: this is the parent's. Nothing of it may be used or closed."""
        self._spool.forget()

    def _adopt(self) -> None:
        adopted = self._spool.adopt()
        self._counters.adopted += adopted
        if adopted:
            _log.info("%d events that ended processes left in the spool are sent now", adopted)

    def _announce(self) -> None:
        """Tell readers that are older than we how we write events: once for each spool, destination and schema."""
        self._framing.schema_id(_REGISTRY_WAIT_S)
        key, value = schema_record(AgentEvent)
        where = f"{self._setup.kafka['bootstrap.servers']} {self._setup.schemas_topic}"
        marker = self._setup.spool / f"schema-{key.decode()}-{sha256(where.encode()).hexdigest()[:12]}"
        if not marker.exists():
            self._sender.announce(parcel(self._setup.schemas_topic, key, value, []), marker.touch)

    def _round(self) -> None:
        # While anything is under way, or was until just now, rounds are paced by the producer's poll and the agent need not wake
        # the thread: a wake costs the agent more than the whole of emit.
        busy = self._sender.left or monotonic() - self._active_at < _LINGER_S
        items = self._handover.take(_BATCH, 0.0 if busy else _IDLE_S)
        if items:
            self._active_at = monotonic()
        self._take(items)
        self._sender.turn(0.0 if len(items) == _BATCH else _TICK_S)
        while self._kept and self._sender.kept(self._kept[0][0]):
            self._attempt(self._kept.popleft()[1])
        if monotonic() >= self._report_at:
            self._report()
        self.left = self._sender.left + self._handover.waiting
        if not self.left:
            for waiter in self._flushes:
                waiter.set()
            self._flushes.clear()

    def _take(self, items: list[Item]) -> None:
        for item in items:  # each for itself: an odd one must not take its neighbours with it, nor the calls that others wait for
            self._attempt(item.call or partial(self._one, item))

    def _one(self, item: Item) -> None:
        event = self._event(item)
        if event is not None and not item.clean:
            event = self._redacted(event)
        if event is not None:
            self._send(event, item.since)

    def _event(self, item: Item) -> AgentEvent | None:
        setup = self._setup
        try:
            return event_from_snapshot(item.snapshot, tenant=setup.tenant, agent=setup.agent, policy=setup.policy)
        except (msgspec.MsgspecError, PermanentError, *_UNFIT) as error:
            self._refuse(Refusal.BAD_INPUT, error)
        return None

    def _redacted(self, event: AgentEvent) -> AgentEvent | None:
        try:
            event, found = self._setup.redactor.redact(event)
        except RedactionError as error:
            self._refuse(why_refused(error), error)
            return None
        if found:
            self._counters.redact(found)
        return event

    def _send(self, event: AgentEvent, since: float) -> None:
        try:
            value = encode(event, schema_id=self._framing.schema_id())
            ready = parcel(self._setup.topic, event.key.encode(), value, headers_for(event, self._setup.way_in))
        except (PermanentError, *_UNFIT) as error:
            self._refuse(Refusal.BAD_INPUT, error)
            return
        if ready.size > EVENT_MAX_BYTES - _RECORD_OVERHEAD:
            self._reject(event, Refusal.TOO_LARGE)
        else:
            self._sender.send(ready, since)

    def _refuse(self, why: Refusal, error: Exception | None = None) -> None:
        # Never the error's text: it may quote what was passed.
        if self._counters.refuse(why):
            _log.error("an event is not sent: %s%s; further ones are only counted", why, f" ({type(error).__name__})" if error else "")

    def _refused_parcel(self, parcel: Parcel, why: Refusal) -> None:
        try:
            event = decode(parcel.value, AgentEvent, self._framing)
        except (UndecodableError, SchemaPendingError) as error:  # framed by an earlier process, and the registry is away
            self._refuse(why, error)
            return
        self._reject(event, why)

    def _reject(self, event: AgentEvent, why: Refusal) -> None:
        self._refuse(why)
        try:
            self._rejected.add(event, why)
        except OSError as error:
            _log.error("a rejected event could not be kept (%s)", error.strerror)

    def _report(self) -> None:
        """Tell the other side what was given up since the last report; later, while there is no room even for that."""
        if self._sender.full:
            return
        self._report_at = monotonic() + self._setup.limits.report_every_s
        now = self._counters.rejected()
        new = {reason: count - self._reported.get(reason, 0) for reason, count in now.items() if count > self._reported.get(reason, 0)}
        if new:
            self._reported = now
            report = self._redacted(self._client_report(new))
            if report is not None:
                self._send(report, monotonic())

    def _client_report(self, dropped: dict[str, int]) -> AgentEvent:
        return AgentEvent(
            event_id=str(uuid_utils.uuid7()),
            tenant=self._setup.tenant,
            trajectory_id=f"client-{uuid_utils.uuid7()}",
            occurred_at=self._setup.clock() // 1000,
            agent=self._setup.agent,
            body=ClientReport(dropped=dropped),
        )

    def _finish(self) -> None:
        assert self._deadline is not None
        while items := self._handover.take(_BATCH, 0.0):
            self._take(items)
            self._sender.turn(0.0)
        self._report()
        self._sender.turn(0.0)
        while self._sender.left and monotonic() < self._deadline:
            self._sender.turn(_TICK_S)
        self.left = self._sender.close()
        for _ in self._handover.take(self._setup.limits.queue_events, 0.0):
            self._refuse(Refusal.CLOSED)

    def _guarded(self, step: Callable[[], None]) -> None:
        """The thread outlives whatever one step raises: the next step may work, and the agent must not notice."""
        if not self._attempt(step):
            threading.Event().wait(_TICK_S)

    def _attempt(self, step: Callable[[], None]) -> bool:
        """Whether it worked; what it raises is counted."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 - named and counted, without its text, which may quote an event
            at = traceback.extract_tb(error.__traceback__)[-1]
            if self._counters.refuse(Refusal.INTERNAL):
                _log.error("the sender's thread failed: %s at %s:%s", type(error).__name__, Path(at.filename).name, at.lineno)
            return False
        return True
