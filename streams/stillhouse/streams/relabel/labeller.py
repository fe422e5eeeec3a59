"""The consumer of tasks of the kind `relabel`: claims one, asks the teacher at each state, publishes what it would have done.

The order, and what a kill after each step leaves: 1. claim (lost after its lease, taken over once) · 2. for each state: asked, then its
events handed to the SDK, which has them on disk or with the broker within a second (a label that is stored when the task is taken over is
not asked for again) · 3. the result is in the claim.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.facts import TeacherTask
from stillhouse.schemas.fold import ERASED
from stillhouse.schemas.keys import trajectory_key
from stillhouse.schemas.labels import Label, label_events, label_id, states
from stillhouse.schemas.teacher_runs import Claim
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.sdk.routes import RouteSettings
from stillhouse.sdk.runner import LEASE_S, Runners
from stillhouse.sdk.runner_claims import Claims
from stillhouse.sdk.store import Store
from stillhouse.streams.logs import logger
from stillhouse.streams.relabel.teacher import route_of, teacher
from stillhouse.streams.signals.settings import SignalsSettings

if TYPE_CHECKING:
    from stillhouse.sdk.client import Client

log = logger(__name__)
_FLUSH_S = 10.0


class Labeller(Runners):
    """Serves tasks of every tenant and family, one at a time. It executes nothing: it needs no environment.

    Args:
        client: sends the labels' events.
        kafka: the section `[kafka]`.
        store: opens the store.
        settings: the section `[signals]`.
        routes: the sections `[routes.<name>]`.
        lease_s: seconds after which a claim of a labeller that is gone is lost.
    """

    relabel = True

    def __init__(
        self,
        client: "Client",
        kafka: KafkaSettings,
        store: Callable[[], Store],
        settings: SignalsSettings,
        routes: Mapping[str, RouteSettings],
        lease_s: float = LEASE_S,
    ) -> None:
        super().__init__(client, None, kafka, store, lease_s)
        self._settings, self._routes = settings, routes

    def _families(self) -> None:
        """All."""
        return

    def _one(self, claims: Claims, claim: Claim, call: Callable[..., Any], stop: threading.Event) -> None:
        """Label the states of one failed run and note what it cost. Stopped in the middle, the claim is left to the next."""
        task, error, cost, made = claim.task, "", 0, 0
        try:
            found = self._patiently(partial(self._begun, task), stop)
        except PermanentError as raised:
            found, error = _Begun(), str(raised)
        if found is None:
            return
        for step in found.steps:
            try:
                label = self._patiently(partial(found.label, step), stop)
            except PermanentError as raised:  # at this state; at another one it may answer
                error = str(raised)
                log.warning("a state is not labelled", task=task.task_id, step=step, error=error)
                continue
            if label is None:
                return
            cost, made = cost + label.cost_micro_usd, made + 1
            for event in label_events(found.run, step, task.task_id, label, self._now()):
                self._client.emit(event)
        self._client.flush(_FLUSH_S)  # what is not sent by then is in the spool
        done = partial(claims.finish, claim, outcome="unknown", cost_micro_usd=cost, error="" if made else error[:500])
        self._patiently(done, threading.Event())  # it was paid: said as soon as the store answers, whatever stops
        log.info("labelled", task=task.task_id, states=made, cost_micro_usd=cost, error=error)

    def _begun(self, task: TeacherTask) -> "_Begun":
        """The run and the states that are not labelled yet.

        Raises:
            PermanentError: the run is gone, or its teacher has no address or no price.
            UnreachableError: the store does not answer.
        """
        run = self._store.load([task.key]).get(task.key)
        if run is None or run.content == ERASED:
            raise PermanentError("the failed run is gone", where=task.key)
        name = run.assignment.route if run.assignment else ""
        route = route_of(name, self._routes, self._settings)
        if route is None:
            raise PermanentError("its teacher has no address", where=task.key, fix="Set [signals] teacher_url and teacher_model.")
        names = {step: trajectory_key(task.tenant, label_id(task.task_id, step)) for step in states(run, self._settings.relabel_states)}
        stored = self._store.by_key("trajectories", list(names.values()), ("key",))
        left = [step for step, name in names.items() if name not in stored]
        return _Begun(run, left, teacher(name, route, self._settings.teacher_version))


class _Begun(NamedTuple):
    """A failed run, the steps whose states are still to be labelled, and whom to ask."""

    run: Any = None
    steps: Sequence[int] = ()
    ask: Any = None

    def label(self, step: int) -> Label:
        """Ask at the state of one step."""
        found: Label = self.ask(self.run.before(step), self.run.tools)
        return found
