"""What the route serves and what has been decided about it: the topics `students` and `canary.verdicts`, followed."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from stillhouse.schemas import codec
from stillhouse.schemas.facts import CanaryVerdict, StudentStage, StudentState
from stillhouse.schemas.route_state import TERMINAL, RouteState
from stillhouse.schemas.topics import VERDICTS
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.serving.canary.follow import Tail
from stillhouse.serving.canary.publish import StudentsLog

LOOK_S = 0.3


async def within(over: Callable[[], Awaitable[bool]], seconds: float) -> bool:
    """Look until a condition holds; False when it did not within so many seconds."""
    clock = asyncio.get_running_loop()
    deadline = clock.time() + seconds
    while not await over():
        if clock.time() > deadline:
            return False
        await asyncio.sleep(LOOK_S)
    return True


class Watch:
    """One route's decisions and verdicts so far.

    Args:
        kafka: where.
        route: which.
    """

    def __init__(self, kafka: KafkaSettings, route: str) -> None:
        self.route = route
        self.verdicts: list[CanaryVerdict] = []
        self._log, self._tail = StudentsLog(kafka), Tail(kafka, VERDICTS)

    async def start(self) -> None:
        """Connect and read what is there. Raises as `StudentsLog.start`."""
        await self._log.start()
        await self._tail.start()
        await self.look()

    async def stop(self) -> None:
        """Disconnect."""
        await self._tail.stop()
        await self._log.stop()

    async def look(self) -> RouteState:
        """Read on; the route's state now."""
        await self._log.catch_up()
        await self._tail.catch_up(self._take)
        return self.state

    @property
    def state(self) -> RouteState:
        """The route's state as of the last look."""
        return self._log.students.states.of(self.route)

    def ended(self, student: str) -> StudentState | None:
        """The decision that ended a student's canary, one way or the other; None while it has not."""
        over = TERMINAL | {StudentStage.CHAMPION}
        mine = (w.record for w in self._log.students.history(self.route) if w.accepted and w.record.student == student)
        return next((record for record in mine if record.stage in over), None)

    def of(self, student: str) -> list[CanaryVerdict]:
        """The recorded verdicts about a student, oldest first."""
        return [verdict for verdict in self.verdicts if verdict.student == student and verdict.route == self.route]

    def _take(self, record: Any) -> None:
        if record.value:
            self.verdicts.append(codec.decode(record.value, CanaryVerdict))
