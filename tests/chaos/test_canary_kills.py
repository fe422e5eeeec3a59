"""A whole canary under kill -9: whatever dies, and whenever, what clients were told is in the store, paid once, and a rollback holds."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from urllib.request import urlopen

import pytest

from stillhouse.schemas import codec
from stillhouse.schemas.events import AgentEvent, StepTaken
from stillhouse.schemas.facts import CanaryVerdict, StudentStage, StudentState
from stillhouse.schemas.route_state import RouteState, fold
from stillhouse.schemas.topics import STUDENTS, VERDICTS
from stillhouse.sdk.store import Store
from stillhouse.serving.canary.publish import StudentsLog
from tests.chaos.canary_clients import Clients, Talk
from tests.chaos.canary_parts import Part, breath, parts, seed_of
from tests.serving.canary_process.world import ROUTE, registered
from tests.serving.gateway.world import Upstream
from tests.support.engines import make_student
from tests.support.ingest import Topics

pytestmark = [pytest.mark.model, pytest.mark.timeout(420)]

SEED = seed_of("STILLHOUSE_TEST_SEED", 20)
WORKERS, HELD, ROLLBACK_S = 4, 3, 5.0
BEFORE = {"gateway": 3, "controller": 2, "student": 1, "ingest": 2}
DURING = {"gateway": 3, "controller": 3, "student": 1, "ingest": 1}
AFTER = {"gateway": 2, "controller": 1, "student": 1, "ingest": 1}


@dataclass
class World:
    """Everything that runs."""

    topics: Topics
    store: Path
    student: str
    parts: dict[str, Part]
    clients: Clients
    log: StudentsLog
    random: Random

    async def when(self, condition: Callable[[], bool], what: str, seconds: float = 90.0) -> None:
        """Wait while everything goes on, with the log read."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}; {self.clients.by_variant()}; {self.state()}"
            await breath()
            await self.log.catch_up()

    def state(self) -> RouteState:
        """Of the route, as far as the log was read."""
        return self.log.students.states.of(ROUTE)

    async def kill(self, counts: dict[str, int], *, served: bool = False) -> None:
        """Each so many times, in an order and at moments that the seed decides: some while they are on their way up.

        Args:
            counts: how often each.
            served: let the student answer between two kills. Else nobody waits for it, and its trip-wire for errors ends the canary.
        """
        order = [name for name, times in counts.items() for _ in range(times)]
        self.random.shuffle(order)
        for name in order:
            await self._answered(self.random.randint(15, 30) if served else 0, self.random.randint(2, 40))
            if name == "student" or self.random.random() < 0.7:
                await self.parts[name].up()
            self.parts[name].kill_and_start()

    async def _answered(self, by_student: int, by_all: int) -> None:
        """Wait for so many more replies."""
        clients = self.clients
        student, everybody = clients.by_variant()[self.student] + by_student, len(clients.answers) + by_all
        await self.when(lambda: clients.by_variant()[self.student] >= student and len(clients.answers) >= everybody, "traffic goes on")

    async def kept_by_the_student(self) -> list[Talk]:
        """Runs whose first step the student answered."""
        found: list[Talk] = []
        async with asyncio.timeout(60):
            while len(found) < HELD:
                talk = self.clients.talk()
                if (await self.clients.ask(talk)).variant == self.student:
                    found.append(talk)
                else:
                    await self.clients.judge(talk)
        return found


@pytest.fixture
async def world(embedded: str, tmp_path: Path) -> AsyncIterator[World]:
    base, student = await asyncio.to_thread(make_student, tmp_path)
    topics = Topics(embedded)
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(Upstream().running())
        running = parts(tmp_path, base, upstream.url, topics)
        for part in running.values():
            part.start()
            stack.push_async_callback(part.close)
        log = StudentsLog(topics.kafka)
        stack.push_async_callback(log.stop)
        await log.start()
        ready = {name: await part.up() for name, part in running.items()}
        clients = Clients(ready["gateway"]["url"])
        stack.push_async_callback(clients.close)
        yield World(topics, tmp_path / "lance", student, running, clients, log, Random(SEED))


async def test_killed_at_any_moment_a_canary_loses_nothing_and_a_rollback_holds(world: World) -> None:
    print(f"STILLHOUSE_TEST_SEED={SEED}")
    async with _traffic(world.clients) as clients:
        await world.log.publish(registered(world.student, time.time_ns() // 1000))
        await world.when(lambda: clients.by_variant()[world.student] >= 40, "the canary is released, started and served")
        await world.kill(BEFORE, served=True)
        held = await world.kept_by_the_student()
        clients.spoilt = True
        await world.kill(DURING)
        await world.when(lambda: world.state().canary is None, "the evidence rolls it back")
        decided = time.time()
        await world.kill(AFTER)
        await world.when(lambda: sum(one.began > decided + ROLLBACK_S for one in clients.answers) >= 40, "traffic after it")
        after = [await clients.ask(talk) for talk in held]
        for talk in held:
            await clients.judge(talk)
    assert {(one.variant, one.reason) for one in after} == {("teacher", "taken_over")}

    ledger, served = await _drained(world)
    print(clients.by_variant(), f"{len(clients.failures)} without a reply, {len(clients.outcomes)} runs")
    said = await asyncio.to_thread(_said, world.topics)
    _only_while_it_was_down(world)
    _not_after_the_rollback(world, said)
    _one_history(world, said, served)
    events, rows = await asyncio.to_thread(_stored, world.store)
    _every_answer_once(clients, events, rows)
    _adds_up(clients, ledger, events, rows)


@asynccontextmanager
async def _traffic(clients: Clients) -> AsyncIterator[Clients]:
    """Runs begin and end until the end of the block; those that are open then are finished."""
    async with asyncio.TaskGroup() as group:
        for _ in range(WORKERS):
            group.create_task(clients.work())
        yield clients
        clients.stop()


async def _drained(world: World) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Wait until everything is stored, and stop in order; gives the ledger and what the gateway says it serves."""
    for part in world.parts.values():
        await part.up()
    admin = (await world.parts["gateway"].up())["admin"]
    await world.when(lambda: _get(f"{admin}/readyz")["ok"], "the gateway has read the log")
    route = _get(f"{admin}/v1/routes")["routes"][ROUTE]
    assert await world.parts["gateway"].stop() == 0, world.parts["gateway"].tail()
    await world.when(lambda: world.topics.unread() == 0, "all events are stored")
    for name in ("ingest", "controller", "student"):
        assert await world.parts[name].stop() == 0, (name, world.parts[name].tail())
    return route["ledger"], route


def _get(url: str) -> Any:
    with urlopen(url, timeout=20) as answer:
        return json.load(answer)


@dataclass(frozen=True)
class Said:
    """The topics `students` and `canary.verdicts`, read by nobody who took part. Times are seconds since the epoch."""

    students: list[tuple[int, StudentState]]
    verdicts: list[tuple[float, CanaryVerdict, dict[str, Any]]]


def _said(topics: Topics) -> Said:
    verdicts = [(message.timestamp()[1] / 1000, codec.decode(message.value(), CanaryVerdict)) for message in topics.read(VERDICTS)]
    return Said(
        [(message.offset(), codec.decode(message.value(), StudentState)) for message in topics.read(STUDENTS)],
        [(at, verdict, json.loads(verdict.numbers)) for at, verdict in verdicts],
    )


def _rollback(said: Said) -> StudentState:
    """The one that is followed."""
    states = [fold(said.students[:n]).of(ROUTE) for n in range(len(said.students) + 1)]
    followed = [one for n, (_, one) in enumerate(said.students) if states[n + 1] is not states[n] and states[n + 1] != states[n]]
    (found,) = [one for one in followed if one.stage is StudentStage.ROLLED_BACK]
    return found


def _only_while_it_was_down(world: World) -> None:
    strange = [one for one in world.clients.failures if not world.parts["gateway"].was_down(one.began, one.ended)]
    assert not strange, strange[:5]
    assert world.clients.failures, "no kill has hit a request"


def _not_after_the_rollback(world: World, said: Said) -> None:
    decision = _rollback(said)
    (at,) = [
        when
        for when, verdict, numbers in said.verdicts
        if (verdict.decided_at, numbers["by"]) == (decision.decided_at, decision.decided_by)
    ]
    by_student = [one.began for one in world.clients.answers if one.variant == world.student]
    late = [round(began - at, 3) for began in by_student if began > at + ROLLBACK_S]
    assert not late, f"seconds after the verdict: {late}"
    print(f"the student's last request began {max(by_student) - at:+.3f} s from the verdict; {decision.reason}")


def _one_history(world: World, said: Said, served: dict[str, Any]) -> None:
    """Whoever reads it: this test from the start, one that reads now, and the gateway that was started last."""
    state = fold(said.students).of(ROUTE)
    assert state == world.state()
    assert (state.canary, state.champion, state.stages) == (None, None, {world.student: StudentStage.ROLLED_BACK})
    assert (served["canary"], served["champion"], served["offset"]) == (None, None, state.offset)
    decision = _rollback(said)
    (verdict,) = [
        v for _, v, n in said.verdicts if (v.decided_at, n["by"], n["prev"]) == (decision.decided_at, decision.decided_by, decision.prev)
    ]
    assert (verdict.student, verdict.verdict) == (world.student, "rollback")


Rows = list[dict[str, Any]]
Events = dict[str, list[AgentEvent]]


def _stored(folder: Path) -> tuple[Events, Rows]:
    store = Store.open(folder)
    rows = store.trajectories()
    sets = store.event_sets({row["key"]: row["chunks"] for row in rows})
    return {key: [one.event for one in members.values()] for key, members in sets.items()}, rows


def _every_answer_once(clients: Clients, events: Events, rows: Rows) -> None:
    assert len({row["key"] for row in rows}) == len(rows)
    stored = Counter(event.event_id for some in events.values() for event in some)
    assert {one.event_id: stored[one.event_id] for one in clients.answers if stored[one.event_id] != 1} == {}
    steps = {row["trajectory_id"]: row["steps"] for row in rows}
    asked = Counter(one.run for one in clients.answers)
    assert {run: (steps.get(run), count) for run, count in asked.items() if steps.get(run) != count} == {}
    texts = {event.event_id: event.body.action.text for event in _steps(events) if isinstance(event.body, StepTaken)}
    assert [one for one in clients.answers if texts[one.event_id] != one.text] == []
    outcomes = {row["trajectory_id"]: row["outcome"] for row in rows}
    assert {run: (outcomes.get(run), said) for run, said in clients.outcomes.items() if outcomes.get(run) != said} == {}


def _steps(events: Events) -> Iterable[AgentEvent]:
    """The last step of each request; those before it are of a student that failed, and are paid with the last."""
    return [e for some in events.values() for e in some if isinstance(e.body, StepTaken) and e.body.error is None]


def _adds_up(clients: Clients, ledger: list[dict[str, Any]], events: Events, rows: Rows) -> None:
    requests = {line["variant"]: line["requests"] for line in ledger}
    assert {who: n for who, n in clients.by_variant().items() if n > requests.get(who, 0)} == {}
    costs = {event.event_id: event.body.cost_micro_usd or 0 for event in _steps(events) if isinstance(event.body, StepTaken)}
    spent = sum(line["cost_micro_usd"] for line in ledger)
    assert spent == sum(costs.values())
    unheard = costs.keys() - {one.event_id for one in clients.answers}
    assert len(unheard) <= len(clients.failures)
    assert spent - sum(row["cost_micro_usd"] for row in rows) == sum(costs[event_id] for event_id in unheard)
