"""Decisions of a person about what a route serves: read the log, decide, write, read back."""

import asyncio
import getpass
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from stillhouse.console import output
from stillhouse.schemas import codec
from stillhouse.schemas.errors import GateError, UsageError
from stillhouse.schemas.facts import CanaryVerdict, StudentStage, StudentState
from stillhouse.schemas.route_state import RouteState, RouteStates
from stillhouse.schemas.topics import VERDICTS
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.serving.canary.follow import Tail, Written
from stillhouse.serving.canary.publish import StudentsLog

ATTEMPTS = 5
"""A controller may decide in between; then it is decided again on the new state."""


@dataclass(frozen=True)
class Read:
    """What the log says now."""

    states: RouteStates
    decisions: list[Written]
    verdicts: dict[str, CanaryVerdict]


def read(kafka: KafkaSettings) -> Read:
    """States, decisions and each route's last verdict.

    Raises:
        UnreachableError: no broker answers.
        PermanentError: a topic is missing, or cannot be read.
    """
    return asyncio.run(_read(kafka))


async def _read(kafka: KafkaSettings) -> Read:
    log, tail = StudentsLog(kafka), Tail(kafka, VERDICTS)
    verdicts: dict[str, CanaryVerdict] = {}

    def take(record: Any) -> None:
        if record.value:
            verdict = codec.decode(record.value, CanaryVerdict)
            verdicts[verdict.route] = verdict

    try:
        await log.start()
        await tail.start()
        await tail.catch_up(take)
    finally:
        await tail.stop()
        await log.stop()
    return Read(log.students.states, log.students.decisions, verdicts)


def publish(kafka: KafkaSettings, decide: Callable[[RouteStates], StudentState]) -> tuple[StudentState, RouteState]:
    """Write a decision until it is one on the present state.

    Args:
        kafka: where.
        decide: makes the record from the states, or raises.

    Returns:
        The record, and the route's state after it.

    Raises:
        GateError: others decided first, every time; or the record does not fit the state.
        UnreachableError: no broker answers.
    """
    return asyncio.run(_publish(kafka, decide))


async def _publish(kafka: KafkaSettings, decide: Callable[[RouteStates], StudentState]) -> tuple[StudentState, RouteState]:
    log = StudentsLog(kafka)
    try:
        await log.start()
        for _ in range(ATTEMPTS):
            record = decide(log.students.states)
            if await log.publish(record):
                return record, log.students.states.of(record.route)
        raise GateError("the decision was not accepted: others were first", where=record.route, fix="Look at `stillhouse canary status`.")
    finally:
        await log.stop()


def running(states: RouteStates, route: str | None) -> RouteState:
    """The state of the route that is meant: the one named, or the only one with a canary.

    Raises:
        GateError: no canary runs there.
        UsageError: several have one, and none was named.
    """
    found = [state for name, state in states.routes.items() if state.canary is not None and route in (None, name)]
    if not found:
        raise GateError("no canary runs", where=route or "", fix="See `stillhouse canary status`.")
    if len(found) > 1:
        raise UsageError("several canaries run", fix=f"Name a route: --route {' | '.join(state.route for state in found)}")
    return found[0]


def by_hand(state: RouteState, student: str, stage: StudentStage, reason: str, **fields: Any) -> StudentState:
    """A person's record."""
    if not reason.strip():
        raise UsageError("a decision needs a reason", where="--reason", fix="Say why: it is kept in the log.")
    record = StudentState(
        student=student,
        stage=stage,
        route=state.route,
        reason=reason,
        decided_by=f"cli/{getpass.getuser()}",
        decided_at=time.time_ns() // 1000,
    )
    return msgspec.structs.replace(record, **fields)


def row(record: StudentState, state: RouteState) -> output.Row:
    """What was decided, and what the route serves now."""
    return {
        "student": record.student,
        "stage": record.stage.value,
        "route": record.route,
        "reason": record.reason,
        "by": record.decided_by,
        "champion": state.champion,
        "canary": state.canary,
        "share": state.share,
        "paused": state.paused,
    }


def show(done: tuple[StudentState, RouteState], *, as_json: bool) -> None:
    """Print what was decided."""
    output.show_object(row(*done), as_json=as_json)
