"""Runners: the user's functions that let the teacher do again what a student failed, in an environment that is safe to repeat.

The order, and what a kill after each step leaves: 1. claim (the lease runs out, and somebody takes it over as attempt 2) · 2. the
function runs, its events go out as it works · 3. they are sent or on disk (the run is found ended, and not paid for again) ·
4. the result is in the claim.
"""

import asyncio
import inspect
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from stillhouse.schemas.errors import RetryableError, UsageError
from stillhouse.schemas.events import Policy, PolicyRole, Task
from stillhouse.schemas.fold import ERASED
from stillhouse.schemas.keys import split_key
from stillhouse.schemas.teacher_runs import Claim
from stillhouse.sdk.config import Config
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.sdk.normalise import outcome_of
from stillhouse.sdk.runner_claims import Claims
from stillhouse.sdk.runner_topic import TaskReader
from stillhouse.sdk.store import Store, StoreSettings
from stillhouse.sdk.trajectory import Trajectory

if TYPE_CHECKING:
    from stillhouse.sdk.client import Client

_log = logging.getLogger("stillhouse.sdk")
T = TypeVar("T")
LEASE_S = 600.0
POLL_S = 0.5
RETRY_S = 1.0
_FLUSH_S = 10.0
_AT_ONCE = 100


class RunnerTask:
    """One task, for the function that runs it.

    Attributes:
        id: of the task.
        kind: why it is asked.
        family: of what is to be done.
        source_task_id: the id of what is to be done, as the failed run's source named it.
        instruction: as the failed run had it.
        failed_trajectory: the id of the student's run.
        attempt: 2 when an earlier runner was lost.
    """

    def __init__(self, client: "Client", claim: Claim, row: dict[str, Any]) -> None:
        task = claim.task
        self.id, self.kind, self.family, self.source_task_id = task.task_id, task.kind.value, task.family or "", task.source_task_id
        self.instruction: str | None = row.get("instruction")
        self.failed_trajectory = split_key(task.key)[1]
        self.attempt = claim.attempts[-1].number
        self.cost_micro_usd, self.outcome = 0, "unknown"
        self._client, self._trajectory_id, self._subject = client, claim.attempts[-1].trajectory, row.get("subject")
        self._environment = row.get("environment")

    def trajectory(self, *, model: str = "", **values: Any) -> Trajectory:
        """Begin the run, linked to the task: an ordinary trajectory of the teacher. Once for each task.

        Args:
            model: the teacher's name.
            values: further arguments of `Client.trajectory`: tools, system_prompt, policy and so on.
        """
        ours: dict[str, Any] = {
            "task": Task(id=self.source_task_id, family=self.family or None, instruction=self.instruction),
            "policy": Policy(role=PolicyRole.TEACHER, model=model),
            "attempt": self.attempt,
            "environment": self._environment,
            "subject": self._subject,
        }
        fixed = {"trajectory_id": self._trajectory_id, "parent_trajectory": self.failed_trajectory}
        run = self._client.trajectory(**(ours | values | fixed))
        run.watch(self._saw)
        return run

    def _saw(self, kind: str, fields: dict[str, Any]) -> None:
        """Add up what the run says of itself."""
        if kind == "step":
            self.cost_micro_usd += fields["cost_micro_usd"] or 0
        elif kind == "end":
            self.outcome = outcome_of(fields["outcome"]).value


Function = Callable[[RunnerTask], Any]


def open_store() -> Store:
    """The store of the configuration.

    Raises:
        MissingExtraError: its packages are not installed.
    """
    config = Config.load()
    return Store.open(config.section("store", StoreSettings).location(config.state))


class Runners:
    """The registered functions and the loop that serves them. One task at a time; more processes run more.

    Args:
        client: sends the runs' events.
        tenant: whose tasks; None serves all.
        kafka: the section `[kafka]`.
        store: opens the store.
        lease_s: seconds after which a claim of a runner that is gone is lost.
        now: microseconds since the epoch.
    """

    relabel = False
    """Whether its tasks are those that execute nothing, of whatever family, or all others."""

    def __init__(
        self,
        client: "Client",
        tenant: str | None,
        kafka: KafkaSettings,
        store: Callable[[], Store],
        lease_s: float = LEASE_S,
        now: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._client, self._tenant, self._kafka, self._open = client, tenant, kafka, store
        self._lease_s, self._now = lease_s, now
        self._functions: dict[str, Function] = {}
        self._scanned = float("-inf")

    def add(self, family: str, function: Function) -> None:
        """Register a function.

        Raises:
            UsageError: the family has one.
        """
        if family in self._functions:
            raise UsageError(f"the family {family} has a runner", where=getattr(self._functions[family], "__qualname__", ""))
        self._functions[family] = function

    def run(self, stop: threading.Event | None = None) -> None:
        """Serve tasks until `stop` is set. Blocks; asynchronous functions run in a loop of their own.

        Raises:
            UsageError: no function is registered.
            MissingExtraError: the store's packages are not installed.
            StillhouseError: no broker or store at the start.
        """
        stop = stop or threading.Event()
        with self._serving() as (reader, claims), asyncio.Runner() as loop:
            while not stop.is_set():
                claim = self._patiently(partial(self._next, reader, claims), stop)
                if claim is not None:
                    with self._renewing(claims, claim):
                        self._one(claims, claim, lambda f, t: loop.run(_awaited(f, t)) if inspect.iscoroutinefunction(f) else f(t), stop)

    async def arun(self, stop: threading.Event | None = None) -> None:
        """`run` within an event loop: asynchronous functions run in this one. Raises as `run`."""
        stop, here = stop or threading.Event(), asyncio.get_running_loop()

        def call(function: Function, task: RunnerTask) -> Any:
            if inspect.iscoroutinefunction(function):
                return asyncio.run_coroutine_threadsafe(_awaited(function, task), here).result()
            return function(task)

        def serve() -> None:
            with self._serving() as (reader, claims):
                while not stop.is_set():
                    claim = self._patiently(partial(self._next, reader, claims), stop)
                    if claim is not None:
                        with self._renewing(claims, claim):
                            self._one(claims, claim, call, stop)

        try:
            await asyncio.to_thread(serve)
        finally:
            stop.set()

    @contextmanager
    def _serving(self) -> Iterator[tuple[TaskReader, Claims]]:
        families = self._families()
        self._store = self._open()
        worker = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        claims = Claims(self._store, worker, self._lease_s, self._now)
        reader = TaskReader(self._kafka, families, self._tenant, relabel=self.relabel)
        try:
            yield reader, claims
        finally:
            reader.close()

    def _families(self) -> frozenset[str] | None:
        """The families that it serves; None is all."""
        if not self._functions:
            raise UsageError("no function is registered", fix="Write @client.runner(family=…) above one.")
        return frozenset(self._functions)

    def _next(self, reader: TaskReader, claims: Claims) -> Claim | None:
        """A claim to work on, if there is one now."""
        reader.poll(POLL_S)
        if time.monotonic() - self._scanned >= min(30.0, self._lease_s / 10):
            claims.register(self._functions)
            lost = claims.take_over(self._families(), self._tenant, relabel=self.relabel)
            if lost is not None:
                return lost
            self._scanned = time.monotonic()  # only when nothing is left to take over
        tasks = reader.take(_AT_ONCE)
        try:
            tasks = claims.free(tasks)
            while tasks:
                claim = claims.claim(tasks[0])
                tasks = tasks[1:]
                if claim is not None:
                    return claim
        finally:
            reader.put_back(tasks)  # those after it, and all when the store was away
        return None

    def _one(self, claims: Claims, claim: Claim, call: Callable[[Function, RunnerTask], Any], stop: threading.Event) -> None:
        """Run one claimed task and note its result."""
        row = self._patiently(partial(self._store.by_key, "trajectories", [claim.task.key]), threading.Event()) or {}
        failed = row.get(claim.task.key, {})
        task, error = RunnerTask(self._client, claim, failed), ""
        if failed.get("content") == ERASED:
            error = "erased"
        else:
            try:
                call(self._functions[claim.task.family or ""], task)
            except Exception as raised:  # noqa: BLE001 - one bad run must not end the others; it is in its result
                error = f"{type(raised).__name__}: {raised}"[:500]
                _log.exception("the run of task %s failed", task.id)
        self._client.flush(_FLUSH_S)  # what is not sent by then is in the spool
        done = partial(claims.finish, claim, outcome=task.outcome, cost_micro_usd=task.cost_micro_usd, error=error)
        self._patiently(done, threading.Event())  # it was paid: said as soon as the store answers, whatever stops

    @contextmanager
    def _renewing(self, claims: Claims, claim: Claim) -> Iterator[None]:
        over = threading.Event()

        def renew() -> None:
            while not over.wait(self._lease_s / 3):
                try:
                    claims.renew(claim)
                except RetryableError as error:
                    _log.warning("a claim was not renewed: %s", error)

        thread = threading.Thread(target=renew, name="stillhouse-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _patiently(self, attempt: Callable[[], T], stop: threading.Event) -> T | None:
        """The result of an attempt; what is away is waited for until `stop`."""
        while not stop.is_set():
            try:
                return attempt()
            except RetryableError as error:
                _log.warning("waiting: %s", error)
                stop.wait(RETRY_S)
        return None


async def _awaited(function: Function, task: RunnerTask) -> Any:
    return await function(task)
