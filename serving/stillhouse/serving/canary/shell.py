"""The controller at work: reads the log, looks at every route, writes what follows. It keeps nothing that the log does not have."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import structlog

from stillhouse.schemas.errors import PermanentError, RetryableError
from stillhouse.schemas.facts import CanaryVerdict, StudentStage, StudentState, TrajectoryFacts, Watermark
from stillhouse.schemas.route_state import RouteState
from stillhouse.schemas.topics import EVENTS, TRAJECTORIES
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.serving.canary import controller, gauges
from stillhouse.serving.canary.candidates import next_student
from stillhouse.serving.canary.controller import Move
from stillhouse.serving.canary.follow import Tail, partition_counts, read_fact
from stillhouse.serving.canary.instruments import Instruments
from stillhouse.serving.canary.publish import StudentsLog
from stillhouse.serving.canary.settings import SECOND, ControllerSettings, Terms
from stillhouse.serving.canary.traffic import History, Traffic, Watermarks
from stillhouse.serving.canary.trips import trip_of

log = structlog.get_logger()


class Controller:
    """Decides on the canaries of all routes.

    Args:
        kafka: the section `[kafka]`.
        settings: the section `[canary]`.
        routes: what each route says.
        name: as its records name it.
        clock: microseconds since the epoch.

    Raises:
        UsageError: a route's holdback leaves no control beside the last stage.
    """

    def __init__(
        self, kafka: KafkaSettings, settings: ControllerSettings, routes: Sequence[Terms], name: str, clock: Callable[[], int]
    ) -> None:
        self._settings, self._name, self._clock = settings, name, clock
        for terms in routes:
            settings.of_canary(terms.holdback)  # now, not when its first student comes
        self._terms = {terms.route: terms for terms in routes}
        self._traffic = {terms.route: Traffic(terms) for terms in routes}
        self._kafka, self._tail = kafka, Tail(kafka, TRAJECTORIES)
        self._marks = Watermarks(0)
        self._recorded: dict[str, int] = {}
        self.log = StudentsLog(kafka)
        self.instruments = Instruments()
        self.waits: dict[str, str] = {}
        self.looked = False

    async def start(self) -> None:
        """Connect.

        Raises:
            UnreachableError: no broker answers.
            PermanentError: a topic is missing, or cannot be read.
        """
        await self.log.start()
        await self._tail.start()
        self._marks = Watermarks((await asyncio.to_thread(partition_counts, self._kafka))[EVENTS])

    async def stop(self) -> None:
        """Disconnect."""
        await self._tail.stop()
        await self.log.stop()

    async def run(self, stop: asyncio.Event) -> None:
        """Look until stopped. A broker that is away is waited for.

        Raises:
            PermanentError: a topic holds what cannot be read.
        """
        waiting = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                pause = self._settings.look_s
                try:
                    await self.look()
                except RetryableError as error:
                    self.instruments.errors.inc()
                    log.warning("a look ended early", error=str(error))
                    pause = max(pause, error.retry_after)
                await asyncio.wait({waiting}, timeout=pause)
        finally:
            waiting.cancel()

    async def look(self) -> None:
        """One look at every route.

        Raises:
            UnreachableError: the broker is away: the next look reads on, and decides on what it then finds.
            PermanentError: the topic `students` holds what cannot be read.
        """
        # Facts first: what had been flushed when a watermark was published lies before the end of the topic. Decisions after them:
        # whatever epoch a fact names was in the topic `students` before it.
        watermark = self._marks.least
        await self._tail.catch_up(self._read)
        await self.log.catch_up()
        for route, terms in self._terms.items():
            state = self.log.students.states.of(route)
            await (self._next(terms, state, watermark) if state.canary is None else self._weigh(state, watermark))
        behind = {"stillhouse_canary_watermark_seconds": watermark, "stillhouse_canary_lag_seconds": self._clock() - watermark}
        self.instruments.show("", [gauges.Sample(name, {}, value / SECOND) for name, value in behind.items()])
        self.instruments.looks.inc()
        self.looked = True

    def _read(self, record: Any) -> None:
        try:
            found = read_fact(record.value)
        except PermanentError as error:
            log.error("a record cannot be read and counts nowhere", topic=record.topic, offset=record.offset, error=str(error))
            return
        if isinstance(found, Watermark):
            self._marks.observe(found)
        elif isinstance(found, TrajectoryFacts) and found.assignment is not None and found.assignment.route in self._traffic:
            self._traffic[found.assignment.route].observe(found)

    async def _weigh(self, state: RouteState, watermark: int) -> None:
        """Look at a running canary."""
        route, traffic = state.route, self._traffic[state.route]
        try:
            frozen = controller.experiment_of(state)
        except (msgspec.MsgspecError, PermanentError) as error:
            self._wait(route, "no_plan", detail=str(error))
            return
        traffic.follow(state, frozen.scales, frozen.settings.holdback, self.log.students.epochs(route))
        epochs = traffic.look(watermark)
        decision = controller.look(state, epochs, watermark, trip_of(traffic.of_canary(state.experiment)))
        self.instruments.show(
            route,
            [
                *gauges.of_state(state),
                *gauges.of_units(route, epochs, traffic.excluded),
                *gauges.of_decision(route, decision),
            ],
        )
        move = controller.move(state, decision, by=self._name, at=self._clock(), excluded=traffic.excluded)
        self._wait(route, move.reason)
        await self._write(state, move)

    async def _write(self, state: RouteState, move: Move) -> None:
        """The verdict, then the decision: one without its numbers would never have them."""
        if move.record is not None or self._due(state, move.verdict):
            await self.log.verdict(move.verdict)
            self._recorded[state.experiment] = move.verdict.decided_at
        if move.record is not None:
            await self._publish(move.record, verdict=move.verdict.verdict, reason=move.reason)

    def _due(self, state: RouteState, verdict: CanaryVerdict) -> bool:
        """Whether a verdict to hold is to be recorded now."""
        last = self._recorded.get(state.experiment, state.started)
        return self._settings.record_s > 0 and verdict.decided_at - last >= self._settings.record_s * SECOND

    async def _next(self, terms: Terms, state: RouteState, watermark: int) -> None:
        """Look for the next student of a route without a canary."""
        self._traffic[terms.route].close()
        self.instruments.show(terms.route, gauges.of_state(state))
        lineage = self.log.students.states.of(terms.lineage or terms.route)
        student = next_student(state, lineage, auto=self._settings.auto)
        if student is None:
            self._wait(terms.route, "no_student")
        elif state.stages.get(student) is not StudentStage.SHADOW:
            reason = "newest registered; the format gate of its registration stands"
            await self._publish(controller.release(student, state, by=self._name, reason=reason, at=self._clock()), verdict="shadow")
        else:
            await self._start(student, terms, state, watermark)

    async def _start(self, student: str, terms: Terms, state: RouteState, watermark: int) -> None:
        history = self._history(terms, state, watermark) if terms.sources else History()
        if (waits := controller.waits_for(history, self._settings, terms)) is not None:
            self._wait(terms.route, waits)
            return
        reason = "released without the gate" if student in state.ungated else "gate passed"
        record = controller.start(student, state, history, self._settings, terms, by=self._name, reason=reason, at=self._clock())
        await self._publish(record, verdict="start")

    def _history(self, terms: Terms, state: RouteState, watermark: int) -> History:
        since = self.log.students.served_since(terms.route) if state.champion is not None else None
        span = round(self._settings.history_s * SECOND)
        return self._traffic[terms.route].history(watermark, span, self._settings.step_cap, since)

    async def _publish(self, record: StudentState, *, verdict: str, reason: str = "") -> None:
        told = {"route": record.route, "student": record.student, "stage": record.stage.value, "share": record.share}
        if await self.log.publish(record):
            self.instruments.decisions.labels(route=record.route, verdict=verdict, reason=reason).inc()
            log.info("decided", verdict=verdict, reason=record.reason, **told)
        else:
            self.instruments.conflicts.labels(route=record.route).inc()
            log.info("another decision was first", verdict=verdict, **told)

    def _wait(self, route: str, reason: str, detail: str = "") -> None:
        """Say once what a route waits for."""
        if self.waits.get(route) != reason:
            self.waits[route] = reason
            log.info("waits", route=route, reason=reason, detail=detail)
