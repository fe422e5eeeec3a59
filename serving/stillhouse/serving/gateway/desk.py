"""What all requests share, and how a request finds its trajectory and its unit's arm."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

import uuid_utils

from stillhouse.schemas.keys import trajectory_key
from stillhouse.schemas.route_state import RouteState, RouteStates
from stillhouse.sdk.prices import MICRO
from stillhouse.sdk.redaction import Redactor
from stillhouse.sdk.routes import RouteSettings
from stillhouse.serving.gateway.assignment import TEACHER, Placed, Why, place, unenrolled, variant
from stillhouse.serving.gateway.backend import Call, StudentEngine
from stillhouse.serving.gateway.capture import Capture
from stillhouse.serving.gateway.failures import ApiError
from stillhouse.serving.gateway.identity import chain_hash, prefix
from stillhouse.serving.gateway.instruments import Instruments
from stillhouse.serving.gateway.keys import Keys
from stillhouse.serving.gateway.memory import Memory, Run
from stillhouse.serving.gateway.prices import BusyTime
from stillhouse.serving.gateway.requests import PREFIX, Asked, Given
from stillhouse.serving.gateway.student_wire import servable
from stillhouse.serving.gateway.teacher import Teacher


@dataclass
class Route:
    """A route with what serves it. `engine` is None where no students' server is configured."""

    name: str
    settings: RouteSettings
    teacher: Teacher
    engine: StudentEngine | None
    busy: BusyTime

    def __post_init__(self) -> None:
        """What it serves until the topic `students` names it."""
        self.unnamed = RouteState(route=self.name)


@dataclass
class Desk:
    """The gateway's parts. `states` is replaced as the topic `students` is read."""

    routes: Mapping[str, Route]
    keys: Keys
    memory: Memory
    capture: Capture
    instruments: Instruments
    redactor: Redactor = field(default_factory=Redactor)
    states: RouteStates = field(default_factory=RouteStates)
    draining: bool = False

    @staticmethod
    def now() -> int:
        """Microseconds since the epoch."""
        return time.time_ns() // 1000

    def state(self, route: Route) -> RouteState:
        """What a route serves now."""
        return self.states.routes.get(route.name) or route.unnamed

    def route(self, name: str, tenant: str) -> Route:
        """The route that a tenant asked for.

        Raises:
            ApiError: there is none, or it is another's.
        """
        route = self.routes.get(name)
        if route is None or (route.settings.tenants and tenant not in route.settings.tenants):
            what = f"The model `{name}` does not exist or you do not have access to it"
            raise ApiError(404, what, code="model_not_found", param="model", fix="GET /v1/models lists yours.")
        return route

    def run(self, route: Route, tenant: str, asked: Asked, given: Given, user: str | None) -> tuple[Run, str, bool]:
        """The trajectory of a request: as remembered, its id, and whether it is new.

        Raises:
            ApiError: it has spent its budget, or its given id holds a secret.
        """
        if given.trajectory and self.secret(given.trajectory):
            name = PREFIX + "trajectory"
            raise ApiError(400, f"{name} holds a secret", code="invalid_header", param=name, fix="An id is stored: make it a random one.")
        known = given.trajectory or self._continued(route, tenant, asked)
        trajectory = known or str(uuid_utils.uuid7())
        key = trajectory_key(tenant, trajectory)
        found = self.memory.run(key) if known else None
        if found is None:
            found, first = self._new_run(route, tenant, key, given, user), True
        elif found.route != route.name:  # assigned on another route: here it is a guest
            return self._as_run(key, route, None, unenrolled(self.state(route))), trajectory, False
        else:
            first = False
        if found.spent >= route.settings.max_cost_usd * MICRO:
            what = f"This trajectory has spent its budget of ${route.settings.max_cost_usd:g}"
            raise ApiError(429, what, code="trajectory_budget_exceeded", fix=f"Raise [routes.{route.name}] max_cost_usd.")
        return found, trajectory, first

    def serve(self, route: Route, run: Run, call: Call) -> tuple[str, Why]:
        """Who answers, and why when it is not the arm's own variant."""
        chosen, why = variant(self.state(route), run.arm, run.student)
        if run.unit is None and why is Why.ASSIGNED:
            why = Why.UNENROLLED
        if chosen == TEACHER:
            return chosen, why
        if route.engine is None or not route.engine.ready(chosen):
            return TEACHER, Why.NOT_READY
        if not servable(call.body) or not route.engine.covers(chosen, call):
            return TEACHER, Why.UNCOVERED
        return chosen, why

    def secret(self, text: str) -> bool:
        """Whether a text holds a secret, and may not be stored."""
        return self.redactor.text(text) != text

    def _continued(self, route: Route, tenant: str, asked: Asked) -> str | None:
        before = prefix(asked.messages)
        return self.memory.trajectory_of(chain_hash(route.name, tenant, before)) if before else None

    def _new_run(self, route: Route, tenant: str, key: str, given: Given, user: str | None) -> Run:
        state, kind = self.state(route), route.settings.unit
        if kind == "trajectory":
            run = self._as_run(key, route, key, place(state, key, route.settings.holdback))
        else:
            named = given.conversation if kind == "conversation" else given.user or user
            if named and self.secret(named):  # a unit is stored, and must stay the same one
                named = sha256(named.encode("utf-8", "surrogatepass")).hexdigest()
            unit = trajectory_key(tenant, named) if named else None
            run = self._as_run(key, route, unit, unenrolled(state) if unit is None else self._of_unit(state, route, unit))
            # Outside a canary the arm is the hash's alone: a stored one would keep the unit from the next champion.
            if unit is not None and state.canary is not None:
                self.memory.add_unit(run)
        self.memory.add_run(run)
        return run

    def _of_unit(self, state: RouteState, route: Route, unit: str) -> Placed:
        known = self.memory.unit(route.name, unit, state.experiment) if state.canary is not None else None
        if known is None:
            return place(state, unit, route.settings.holdback)
        return Placed(experiment=state.experiment, arm=known[0], epoch=known[1], student=known[2])

    @staticmethod
    def _as_run(key: str, route: Route, unit: str | None, placed: Placed) -> Run:
        return Run(
            key=key,
            route=route.name,
            unit=unit,
            experiment=placed.experiment,
            arm=placed.arm,
            epoch=placed.epoch,
            student=placed.student,
        )
