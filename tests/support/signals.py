"""Signals under test: runs in the store, facts on the topic, the process, and what it asked for."""

import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from stillhouse.schemas import codec
from stillhouse.schemas.event_set import member
from stillhouse.schemas.events import AgentEvent, Assignment, Outcome, Policy, PolicyRole, TrajectoryStarted
from stillhouse.schemas.facts import TeacherTask, TrajectoryFacts, Watermark
from stillhouse.schemas.ledger import LeaderLedger, Side, TaskText
from stillhouse.schemas.literals import fold
from stillhouse.schemas.tables import ledger_row
from stillhouse.schemas.teacher_runs import RUNNER, TABLE, runner_key
from stillhouse.schemas.topics import TEACHER_TASKS, TRAJECTORIES
from stillhouse.sdk.kafka import topic_name
from stillhouse.sdk.store import Store
from stillhouse.streams.ingest.rows import Read
from stillhouse.streams.ingest.sink import Sink, Unit
from tests.support.child import Child
from tests.support.events import TEACHER, trajectory
from tests.support.ingest import Topics

STUDENT = Policy(role=PolicyRole.STUDENT, model="student-1-abc", version="1")
NOW = time.time_ns() // 1000
QUICK = {"refresh": "0.2", "bucket": "3600", "session_timeout": "6", "lease": "20", "teacher_model": "big"}


def runs_of(
    numbers: Iterable[int],
    *,
    name: str = "t",
    policy: Policy = TEACHER,
    outcome: Outcome = Outcome.SUCCESS,
    family: str = "refund",
    route: str = "",
    subject: str | None = None,
) -> list[AgentEvent]:
    """Whole runs of one policy; the same number is the same task, whoever runs it."""
    arm = Assignment(route=route, unit="u", experiment="e", arm="champion", epoch=0) if route else None
    found = []
    for number in numbers:
        for event in trajectory(number, name=name, outcome=outcome, family=family):
            body = event.body
            if subject is not None and isinstance(body, TrajectoryStarted):
                body = msgspec.structs.replace(body, subject=subject)
            found.append(msgspec.structs.replace(event, policy=policy, assignment=arm, body=body))
    return found


def failures(
    numbers: Iterable[int], *, name: str = "s", family: str = "refund", route: str = "", subject: str | None = None
) -> list[AgentEvent]:
    """Runs that a student failed."""
    return runs_of(numbers, name=name, policy=STUDENT, outcome=Outcome.FAILURE, family=family, route=route, subject=subject)


def stored(store: Store, events: Iterable[AgentEvent], appended_at: int | None = None) -> None:
    """Put events into the store as ingest does."""
    units: dict[str, Unit] = {}
    at = NOW if appended_at is None else appended_at
    for event in events:
        one = member(event)
        units.setdefault(event.key, Unit(event.key, {}, Read(0, 0, 0, at))).members[one.digest] = one
    Sink(store, lambda: NOW).write(list(units.values()))


def has_runner(store: Store, *families: str, at: int | None = None) -> None:
    """Say that somebody runs tasks of these families."""
    seen = time.time_ns() // 1000 if at is None else at
    store.insert_if_absent(TABLE, [ledger_row(runner_key(family), family, RUNNER, "", {}, seen, seen) for family in families])


def side_of(number: int, family: str = "refund", settings: Mapping[str, float] | None = None) -> Side:
    """Where the task of that number stands when it is placed first."""
    ledger = LeaderLedger(**(settings or {})).assign([text_of(number, family)])  # type: ignore[arg-type]
    place = ledger.place("acme", family, f"task-{number}")
    assert place is not None
    return place.side


def text_of(number: int, family: str = "refund") -> TaskText:
    return TaskText(tenant="acme", family=family, task_key=f"task-{number}", text=fold(f"Refund order {number}"))


def say(topics: Topics, *values: TrajectoryFacts | Watermark) -> None:
    """Publish facts and watermarks."""
    for value in values:
        key = value.key if isinstance(value, TrajectoryFacts) else f"watermark/{value.partition}"
        topics.raw(codec.encode(value), key, None, topic_name(topics.kafka, TRAJECTORIES))


def mark(at: int, partition: int = 0) -> Watermark:
    return Watermark(partition=partition, watermark=at, position=0, committed=0, worker="w")


def tasks_on(topics: Topics) -> list[TeacherTask]:
    """Every record of `teacher.tasks`."""
    return [codec.decode(message.value(), TeacherTask) for message in topics.read(TEACHER_TASKS)]


class Process(Child):
    """`python -m stillhouse.streams.signals` on a state folder."""

    def __init__(self, topics: Topics, state: Path, *, die: str = "", **settings: str) -> None:
        environment = os.environ | {f"STILLHOUSE_SIGNALS__{k.upper()}": v for k, v in (QUICK | settings).items() if "__" not in k}
        environment |= {f"STILLHOUSE_{k.upper()}": v for k, v in settings.items() if "__" in k}
        environment |= {"STILLHOUSE_KAFKA__PREFIX": topics.kafka.prefix, "STILLHOUSE_TEST_DIE": die}
        command = [sys.executable, "-m", "stillhouse.streams.signals", "--state", str(state)]
        command += ["--bootstrap-servers", topics.kafka.bootstrap_servers]
        super().__init__("signals", command, state, environment)
