"""The client: what an agent calls. Nothing here blocks or raises into the agent, but for wrong settings at construction and `close`."""

import asyncio
import atexit
import importlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
import uuid_utils

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.events import AgentEvent, FeedbackSource, Outcome, Policy, Task
from stillhouse.schemas.topics import EVENTS, SCHEMAS
from stillhouse.sdk.clean import cleaned
from stillhouse.sdk.config import Config
from stillhouse.sdk.handover import CleanEvent, Draft, Handover, snapshot
from stillhouse.sdk.kafka import KafkaSettings, confluent_producer_args, schema_registry, topic_name
from stillhouse.sdk.limits import Limits
from stillhouse.sdk.redaction import Redactor
from stillhouse.sdk.stats import ClientStats, CloseReport, Counters, Refusal
from stillhouse.sdk.trajectory import Trajectory
from stillhouse.sdk.worker import Setup, Worker

F = TypeVar("F", bound=Callable[..., Any])
_log = logging.getLogger("stillhouse.sdk")
# No timeout of the library's own: the spool keeps what waits, and a timeout would only send it there.
_PRODUCER: dict[str, Any] = {"message.timeout.ms": 0, "linger.ms": 5, "reconnect.backoff.max.ms": 2000}
_EXIT_TIMEOUT_S = 2.0
_GRACE_S = 5.0  # after the deadline of close: the last write to disk and the end of the library's threads
_CLIENTS: "weakref.WeakSet[Client]" = weakref.WeakSet()


class Client:
    """Sends an agent's events. One for each process is enough; threads and tasks may share it.

    Args:
        bootstrap_servers: the broker's address; without it and without `settings`, `[kafka]` of the configuration.
        tenant: whose data this is.
        agent: this agent's name and version.
        policy: who acts, where an event does not say otherwise.
        spool: folder for what cannot be sent yet; default `spool/` of the state folder. One for each destination: the next client on
            it sends what an ended process left there.
        settings: TLS, SASL, prefix and so on; `bootstrap_servers` wins over the one in it.
        redaction: what to take out of texts; default: common secrets.
        limits: bounds and times.
        way_in: the way these events came, for the records' headers.
        clock: nanoseconds since the epoch.

    Raises:
        PermanentError: the settings are wrong, or the spool cannot be made. A broker that is away is no error.
    """

    def __init__(
        self,
        bootstrap_servers: str | None = None,
        *,
        tenant: str = "default",
        agent: str = "",
        policy: Policy = Policy(),  # noqa: B008 - frozen
        spool: Path | str | None = None,
        settings: KafkaSettings | None = None,
        redaction: Redactor | None = None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        way_in: str = "sdk",
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        if settings is None:
            settings = KafkaSettings() if bootstrap_servers else Config.load().section("kafka", KafkaSettings)
        if bootstrap_servers:
            settings = msgspec.structs.replace(settings, bootstrap_servers=bootstrap_servers)
        if not tenant:
            raise PermanentError("a client needs a tenant", fix='Leave it out for the tenant "default".')
        self._limits, self._clock, self._kafka = limits, clock, settings
        self._runners: Any = None
        self._setup = Setup(
            kafka=confluent_producer_args(settings, **_PRODUCER | settings.extra),
            topic=topic_name(settings, EVENTS),
            schemas_topic=topic_name(settings, SCHEMAS),
            spool=Path(spool) if spool is not None else Config.load().state_dir("spool"),
            tenant=tenant,
            agent=agent,
            policy=policy,
            way_in=way_in,
            redactor=redaction or Redactor(),
            limits=limits,
            clock=clock,
            registry=schema_registry(settings),
        )
        self._lock = threading.RLock()  # held for moments only; reentrant, because a signal handler may call anything here
        self._closed: CloseReport | None = None
        self._closing = False
        self._reset()
        self._start()
        _CLIENTS.add(self)

    def _reset(self) -> None:
        self._handover = Handover(self._limits.queue_events, self._limits.queue_bytes)
        self._counters = Counters()
        self._worker: Worker | None = None
        self._thread: threading.Thread | None = None
        self._starting = False

    def _start(self) -> None:
        with self._lock:
            if self._worker is not None or self._starting:
                return
            self._starting = True  # a signal handler that emits now is within this very call
            try:
                worker = Worker(self._setup, self._handover, self._counters)
                self._thread = threading.Thread(target=worker.run, name="stillhouse-sdk", daemon=True)
                self._thread.start()
                self._worker = worker
            finally:
                self._starting = False

    def trajectory(
        self,
        task: str | Mapping[str, Any] | Task | None = None,
        *,
        tools: Sequence[Any] = (),
        system_prompt: str | None = None,
        family: str | None = None,
        trajectory_id: str | None = None,
        policy: Policy | None = None,
        attempt: int = 1,
        parent_trajectory: str | None = None,
        resume_step: int | None = None,
        environment: str | None = None,
        subject: str | None = None,
        traceparent: str | None = None,
    ) -> Trajectory:
        """Begin a run, and say so.

        Args:
            task: what the agent was asked: a text, or id, family and instruction.
            tools: OpenAI tool definitions.
            system_prompt: the agent's.
            family: the kind of task, when `task` does not name it.
            trajectory_id: an id of your own; it must be unique within the tenant.
            policy: who acts in this run.
            attempt: 1 for the first try of this task.
            parent_trajectory: the run that this one repeats or resumes.
            resume_step: the step of the parent that it resumes at.
            environment: simulator and version, when there is one.
            subject: whose data it is, already a pseudonym; what erasure goes by.
            traceparent: W3C trace context.
        """
        run = Trajectory(self._take, trajectory_id or str(uuid_utils.uuid7()), task, family, policy, traceparent)
        fields = {
            "task": task,
            "family": family,
            "tools": tools,
            "system_prompt": system_prompt,
            "attempt": attempt,
            "parent_trajectory": parent_trajectory,
            "resume_step": resume_step,
            "environment": environment,
            "subject": subject,
        }
        run.send("start", fields)
        return run

    def feedback(
        self,
        trajectory_id: str,
        *,
        outcome: Outcome | str | bool | None = None,
        reward: float | None = None,
        source: FeedbackSource | str = FeedbackSource.UNKNOWN,
        source_version: str = "",
        step: int | None = None,
        label: str | None = None,
        revises: str | None = None,
        retracted: bool = False,
    ) -> str | None:
        """Judge a run: before, during or long after it.

        Args:
            trajectory_id: the run's.
            outcome: success, failure, aborted, unknown; or True and False for the first two.
            reward: any number.
            source: who judges: verifier, user, proxy, judge.
            source_version: which version of it.
            step: the step that is judged, when it is not the whole.
            label: a word about it.
            revises: the event id of an earlier feedback that this one replaces.
            retracted: that one is taken back and nothing put in its place.

        Returns:
            The event id, or None when the event was refused (counted in `stats`).
        """
        fields = {
            "outcome": outcome,
            "reward": reward,
            "source": source,
            "source_version": source_version,
            "step": step,
            "label": label,
            "revises": revises,
            "retracted": retracted,
        }
        return self._take("feedback", trajectory_id, fields, None)

    def runner(self, *, family: str) -> Callable[[F], F]:
        """Register a function (`def` or `async def`) that lets the teacher do again what a student failed; `run_runners` serves it.

        Only for an environment that is safe to repeat: the function takes a `RunnerTask` and acts.

        Raises:
            UsageError: the family has a runner.
        """

        def register(function: F) -> F:
            self._serving.add(family, function)
            return function

        return register

    def run_runners(self, stop: threading.Event | None = None) -> None:
        """Serve the registered runners until `stop` is set; blocks. Raises as `Runners.run`."""
        self._serving.run(stop)

    async def arun_runners(self, stop: threading.Event | None = None) -> None:
        """`run_runners` without blocking the event loop, in which asynchronous functions run."""
        await self._serving.arun(stop)

    @property
    def _serving(self) -> Any:
        if self._runners is None:
            # By name: whoever stands in front of traffic uses a client too, and must not depend on the store.
            part = importlib.import_module("stillhouse.sdk.runner")
            self._runners = part.Runners(self, self._setup.tenant, self._kafka, part.open_store)
        return self._runners

    def emit(self, event: AgentEvent | CleanEvent) -> bool:
        """Hand over a whole event, as importers do. False when it was refused (counted in `stats`)."""
        return self._put(event)

    def redact(self, event: AgentEvent) -> CleanEvent | None:
        """An event for `emit` whose secrets are out already, for programs that write it down before. None: refused, as by `emit`."""
        return cleaned(event, self._setup.redactor, self._counters, self._refused)

    def when_kept(self, call: Callable[[], None]) -> None:
        """Call from the background thread once all that was emitted before is acknowledged or on disk; not if the client ends before."""
        if self._worker is not None:
            self._handover.call(partial(self._worker.when_kept, call))

    def put(self, event: AgentEvent, timeout: float = 60.0) -> bool:
        """`emit` for programs that may wait, such as importers: with a full queue it waits for room.

        Returns:
            False when there was none within `timeout` seconds, or the event was refused (counted in `stats`).
        """
        try:
            data = snapshot(event)
        except Exception as error:  # noqa: BLE001 - as emit
            return self._refused(Refusal.BAD_INPUT, type(error).__name__)
        if self._worker is None:  # the first event after a fork
            self._start()
        deadline = time.monotonic() + timeout
        while not self._closing and not self._handover.put(data):
            left = deadline - time.monotonic()
            if left <= 0 or len(data) > self._limits.queue_bytes:
                return self._refused(Refusal.QUEUE_FULL)
            taken = threading.Event()
            self._handover.call(taken.set)
            taken.wait(left)
        return self._refused(Refusal.CLOSED) if self._closing else True

    def _take(self, kind: str, trajectory_id: str, fields: Any, policy: Policy | None, refuse: Refusal | None = None) -> str | None:
        """Hand over the draft of an event, or count why its maker refuses it; gives its event id."""
        if refuse is not None:
            self._refused(refuse)
            return None
        event_id = str(uuid_utils.uuid7())
        return event_id if self._put(Draft(kind, event_id, trajectory_id, self._clock() // 1000, fields, policy)) else None

    def _put(self, event: Draft | AgentEvent | CleanEvent) -> bool:
        if self._closing:
            return self._refused(Refusal.CLOSED)
        try:
            if self._worker is None:  # the first event after a fork
                self._start()
            if self._handover.put(snapshot(event), clean=isinstance(event, CleanEvent)):
                return True
        except Exception as error:  # noqa: BLE001 - whatever the agent passed, it must not notice
            return self._refused(Refusal.BAD_INPUT, type(error).__name__)
        return self._refused(Refusal.QUEUE_FULL)

    def _refused(self, why: Refusal, detail: str = "") -> bool:
        if self._counters.refuse(why):
            _log.error("an event is not taken: %s%s; further ones are only counted", why, f" ({detail})" if detail else "")
        return False

    @property
    def stats(self) -> ClientStats:
        """This moment's numbers."""
        counters, worker = self._counters, self._worker
        return ClientStats(
            emitted=self._handover.accepted,
            sent=counters.sent,
            spooled=counters.spooled,
            waiting=worker.left if worker is not None else self._handover.waiting,
            adopted=counters.adopted,
            rejected=counters.rejected(),
            redacted=counters.redacted(),
        )

    def flush(self, timeout: float = 10.0) -> int:
        """Wait until everything emitted before is acknowledged; gives how many events are left (on their way or in the spool)."""
        worker = self._worker
        if worker is None or self._closing:
            return 0 if worker is None else worker.left
        waiter = threading.Event()
        self._handover.call(lambda: worker.flush(waiter))
        return 0 if waiter.wait(timeout) else worker.left

    def close(self, timeout: float = 10.0) -> CloseReport:
        """Send what is left, for at most about `timeout` seconds; what is not acknowledged then stays in the spool.

        Safe to call twice, also at once and from a signal handler: the first call says until when the thread may send, and each
        waits for the thread's end for its own time.
        """
        with self._lock:
            first, self._closing = not self._closing, True
            worker, thread = self._worker, self._thread
        if self._closed is None and worker is not None and thread is not None:
            if first:
                self._handover.call(partial(worker.stop, time.monotonic() + timeout))
            # Joined, and not awaited by an event of ours: the call that a signal handler interrupted could never set it.
            thread.join(timeout + _GRACE_S)
            if thread.is_alive():
                _log.error("the sender's thread did not end in time: what it holds in memory may be lost with the process")
                return self._close_report(worker)
        if self._closed is None:
            self._closed = self._close_report(worker)
        return self._closed

    def _close_report(self, worker: Worker | None) -> CloseReport:
        left = worker.left if worker is not None else 0
        return CloseReport(sent=self._counters.sent, left=left, rejected=self._counters.rejected())

    async def aclose(self, timeout: float = 10.0) -> CloseReport:
        """`close` without blocking the event loop."""
        return await asyncio.to_thread(self.close, timeout)

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""
        self.close()

    async def __aenter__(self) -> Self:
        """The client itself."""
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close, without blocking the event loop."""
        await self.aclose()

    def _after_fork(self) -> None:
        """In the child: the thread is gone, and queue, producer and spool are the parent's."""
        self._lock = threading.RLock()
        if self._worker is not None:
            self._worker.forget()
            # The library's handle must never be destroyed here (it would wait for threads that only the parent has).
            _PARENTS.append(self._worker)
        self._reset()


_PARENTS: list[Worker] = []


def _close_at_exit() -> None:
    for client in list(_CLIENTS):
        client.close(_EXIT_TIMEOUT_S)


def _after_fork_in_child() -> None:
    for client in list(_CLIENTS):
        client._after_fork()


atexit.register(_close_at_exit)
os.register_at_fork(after_in_child=_after_fork_in_child)
