"""Follows the topic `students`: what each route serves, and which students the engines hold ready for it."""

import asyncio
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import structlog

from stillhouse.schemas.errors import PermanentError, RetryableError
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.serving.canary.controller import wire
from stillhouse.serving.canary.publish import StudentsLog
from stillhouse.serving.canary.tripwires import Trip
from stillhouse.serving.gateway.backend import Verdict
from stillhouse.serving.gateway.desk import Desk, Route

LOOK_S = 0.25
"""Between two looks: much less than the five seconds from a verdict to the last request of its student."""
RETRY_S = 5.0
log = structlog.get_logger()


class Follower:
    """Reads the topic and moves students in and out of the engines.

    Args:
        desk: its states are replaced here.
        kafka: where the topic is.
        clock: seconds.
    """

    def __init__(self, desk: Desk, kafka: KafkaSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._desk, self._kafka, self._clock = desk, kafka, clock
        self._name = f"gateway/{socket.gethostname()}/{os.getpid()}"
        self._moves: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._held: set[tuple[str, str]] = set()
        self._again: dict[tuple[str, str, bool], float] = {}  # a bringing that failed does not put off the taking away
        self.read_once = False
        self.failed = ""

    @property
    def waits(self) -> str:
        """Why what the routes serve is not known; empty when it is."""
        return "" if self.read_once else self.failed or "reading the topic students"

    async def run(self, stop: asyncio.Event) -> None:
        """Follow until `stop`. A broker that is away is waited for: the routes go on serving as they are."""
        while not stop.is_set():
            # Read from the beginning into new states: the old ones serve until these are whole.
            students = StudentsLog(self._kafka)
            try:
                await students.start()
                while not stop.is_set():
                    await students.catch_up()
                    self.follow(students.students.states)
                    self.read_once, self.failed = True, ""
                    await self._tell(students)
                    await _pause(stop, LOOK_S)
            except (RetryableError, PermanentError) as error:
                if str(error) != self.failed:
                    log.warning("students_unreadable", error=str(error))
                self.failed = str(error)
            finally:
                await students.stop()
            await _pause(stop, RETRY_S if not self.read_once else 1.0)

    def follow(self, states: Any) -> None:
        """Serve by these states from now on, and see to the engines."""
        self._desk.states = states
        for route in self._desk.routes.values():
            state = self._desk.state(route)
            self._desk.instruments.set("students_offset", state.offset, route.name)
            if route.engine is not None:
                wanted = {name for name in (state.champion, state.canary) if name}
                self._see_to(route, wanted)

    async def _tell(self, students: StudentsLog) -> None:
        """Roll back canaries that an engine refused, for everybody: here they serve no longer already.

        Only the log remembers it. A gateway that is killed before its decision is there attests again and decides again; of two gateways
        that decide at once one is followed; one that another decision overtook looks again at what came of it.

        Raises:
            UnreachableError: no broker takes it; the next look tries again.
        """
        for route in self._desk.routes.values():
            state = self._desk.state(route)
            if state.canary is None or route.engine is None:
                continue
            found = route.engine.refusal(state.canary)
            if found is None:
                continue
            numbers = {"attestation": found.reason, "distances": found.numbers, "engine": route.settings.engine_url}
            move = wire(state, Trip.ATTESTATION, numbers, by=self._name, at=self._desk.now())
            assert move.record is not None
            await students.verdict(move.verdict)
            if await students.publish(move.record):
                self._desk.instruments.count("rollbacks_total", route.name, state.canary, move.reason)
                log.error("canary_rolled_back", route=route.name, student=state.canary, reason=found.reason)

    async def close(self) -> None:
        """Stop what is under way."""
        for task in self._moves.values():
            task.cancel()
        await asyncio.gather(*self._moves.values(), return_exceptions=True)

    def _see_to(self, route: Route, wanted: set[str]) -> None:
        held = {student for name, student in self._held if name == route.name}
        assert route.engine is not None
        for student in wanted | held:
            key, there = (route.name, student), route.engine.ready(student)
            self._desk.instruments.set("student_ready", float(there and student in wanted), *key)
            self._desk.instruments.set("student_refused", float(route.engine.refusal(student) is not None), *key)
            if key in self._moves or self._again.get((*key, student in wanted), 0.0) > self._clock():
                continue
            if student in wanted and not there:
                self._begin(key, self._bring(route, student))
            elif student not in wanted:
                self._begin(key, self._take_away(route, student))

    def _begin(self, key: tuple[str, str], work: Any) -> None:
        task = asyncio.create_task(work)
        self._moves[key] = task
        task.add_done_callback(lambda done: self._moves.pop(key, None))

    async def _bring(self, route: Route, student: str) -> None:
        """Load, warm and attest. Until then, and when it fails, the teacher serves the student's arm."""
        engine, key = route.engine, (route.name, student)
        assert engine is not None
        self._held.add(key)
        self._again[*key, True] = self._clock() + RETRY_S
        try:
            await engine.load(student)
            found = await engine.attest(student)
        except (RetryableError, PermanentError) as error:
            log.warning("student_not_served", route=route.name, student=student, error=str(error))
            return
        good = found.verdict is not Verdict.REFUSED
        log.info("student_attested", route=route.name, student=student, verdict=found.verdict, reason=found.reason, good=good)
        self._again[*key, True] = 0.0 if good else self._clock() + 12 * RETRY_S

    async def _take_away(self, route: Route, student: str) -> None:
        assert route.engine is not None
        key = (route.name, student)
        try:
            await route.engine.unload(student)
        except (RetryableError, PermanentError) as error:
            log.warning("student_not_unloaded", route=route.name, student=student, error=str(error))
            self._again[*key, False] = self._clock() + RETRY_S
            return
        self._held.discard(key)


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return
