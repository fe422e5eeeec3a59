"""The daemon's loop on a real store, with jobs that train nothing and a clock that the test moves."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.schemas.errors import GateError, PermanentError, RetryableError, StillhouseError, UnreachableError
from stillhouse.schemas.facts import StudentStage, StudentState
from stillhouse.schemas.window_request import WINDOWS, WindowRequest, row_of
from stillhouse.sdk.config import Config
from stillhouse.trainer import planning, windows
from stillhouse.trainer.child import Event, OnEvent
from stillhouse.trainer.daemon.board import Board
from stillhouse.trainer.daemon.look import Looker
from stillhouse.trainer.daemon.loop import Daemon
from stillhouse.trainer.daemon.move import SECOND_US
from stillhouse.trainer.daemon.status import read_status
from stillhouse.trainer.decisions import Record
from stillhouse.trainer.settings import TrainerSettings, WindowSettings
from stillhouse.trainer.windows_types import EvaluatedFacts, State, Window
from tests.trainer.window_factory import Desk, put, trajectory

TOML = """
[trainer]
grammar = "bare-json"
trial_grace_s = 60

[window]
stratum_floor = 1000
max_tokens = 1
min_kept = 10

[[window.schedule]]
size = 8

[[window.schedule]]
size = 6
replay = 0.25
continue_rate = 0.75
"""


class Loop:
    """A daemon with its desk; `problem` is what its jobs raise."""

    def __init__(self, state: Path, toml: str = TOML) -> None:
        self.desk = Desk(state)
        self.toml = state / "stillhouse.toml"
        self.toml.write_text(toml)
        self.run = Config.load(self.toml, state=state).state_dir("run")
        self.now, self.records = 10_000_000_000, list[Record]()
        self.problem: StillhouseError | None = None
        self.gate: GateError | None = None
        self.jobs = 0
        self.start()

    def start(self) -> None:
        """As after a restart: what is known is what was written down."""
        self.board = Board(self.run, self.clock)
        looker = Looker(lambda: Config.load(self.toml, state=self.desk.state), None, self.clock, lambda: self.records)
        self.daemon = Daemon(looker, self.job, self.board, self.clock)

    def clock(self) -> int:
        return self.now

    async def job(self, on_event: OnEvent, nice: int) -> Event:
        self.jobs += 1
        if self.problem is not None:
            raise self.problem
        config = Config.load(self.toml, state=self.desk.state)
        window, trainer = config.section("window", WindowSettings), config.section("trainer", TrainerSettings)
        job = self.desk.job(window, evaluate=self.evaluate)
        job.clock, job.say = self.clock, on_event
        going = windows.open_window(self.desk.store, window.lineage)
        result = job.run(None if going else planning.next_plan(self.desk.store, window, trainer, None))
        return {"state": result.state.value, "window": result.window, "student": result.student, "reason": result.reason}

    def evaluate(self, candidate: Path, parent: Path | None, progress: OnEvent, /) -> EvaluatedFacts:
        if self.gate is not None:
            raise self.gate
        return EvaluatedFacts(success=0.5, failure_rates={"a": 0.0, "b": 1.0})

    def put(self, first: int, count: int, **more: Any) -> None:
        put(self.desk.store, [trajectory(i, at=self.now + i, **more) for i in range(first, first + count)], first * 10)

    def say(self, stage: StudentStage, student: str, **more: Any) -> None:
        self.records.append((len(self.records), StudentState(student=student, stage=stage, route="default", **more)))

    @property
    def waits(self) -> str:
        return self.board.status.waits

    @property
    def made(self) -> list[Window]:
        return windows.list_windows(self.desk.store)


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    return Loop(tmp_path)


async def test_it_waits_for_enough_and_then_runs_a_window_by_itself(loop: Loop) -> None:
    loop.put(0, 7)
    assert not await loop.daemon.turn()
    assert loop.waits == "7 of 10 new successes, oldest 0.0 of 24 h old"
    loop.put(7, 5)
    assert await loop.daemon.turn()
    (window,) = loop.made
    assert window.state is State.REGISTERED and window.plan.quota is not None and window.plan.quota.size == 8
    assert not await loop.daemon.turn() and loop.waits.startswith(f"{window.student} is registered")
    written = json.loads((loop.run / "trainer.json").read_bytes())
    assert written["waits"] == loop.waits and written["failure"] is None
    text = loop.board.text().decode()
    assert 'stillhouse_trainer_jobs_total{reason="registered"} 1.0' in text and "stillhouse_trainer_running 0.0" in text


async def test_after_the_verdict_the_next_window_goes_on_with_the_schedules_next_step(loop: Loop) -> None:
    loop.put(0, 12)
    assert await loop.daemon.turn()
    first = loop.made[0].student
    loop.say(StudentStage.REGISTERED, first)
    loop.say(StudentStage.CANARY, first, share=0.1)
    loop.put(20, 12)
    loop.now += 100 * SECOND_US
    assert not await loop.daemon.turn() and loop.waits == f"{first} is in canary: 10% of default"
    loop.say(StudentStage.CHAMPION, first, prev=1)
    assert await loop.daemon.turn()
    plan = loop.made[1].plan
    assert (plan.mode, plan.parent) == ("continue", first)
    assert plan.quota is not None and (plan.quota.size, plan.quota.replay) == (6, 0.25)
    assert plan.quota.weights == {"a": 0.3, "b": 1.3}
    assert plan.terms is not None and plan.terms.settings.continue_rate == 0.75


ROLLED_BACK = {"decided_by": "canary/host/1", "reason": "success_worse_than_teacher", "prev": 1}


@pytest.mark.parametrize("lenient", [False, True])
async def test_what_follows_a_rollback(tmp_path: Path, lenient: bool) -> None:
    loop = Loop(tmp_path, TOML.replace("[window]", f"[window]\ncontinue_below_teacher = {str(lenient).lower()}"))
    loop.put(0, 12)
    assert await loop.daemon.turn()
    first = loop.made[0]
    loop.say(StudentStage.REGISTERED, first.student)
    loop.say(StudentStage.CANARY, first.student, share=0.1)
    loop.say(StudentStage.ROLLED_BACK, first.student, **ROLLED_BACK)
    assert not await loop.daemon.turn(), "its rows are no news"
    loop.put(20, 12)
    # The job of this test has no broker: it is told here what it would have read.
    out = windows.waiting(loop.desk.store, "default", barred=() if lenient else (first.student,))
    config = Config.load(loop.toml, state=loop.desk.state)
    planned = windows.plan(loop.desk.store, config.section("window", WindowSettings), barred=() if lenient else (first.student,))
    assert (planned.mode, planned.parent) == (("continue", first.student) if lenient else ("fresh", None))
    assert planned.quota is None or planned.quota.weights == {"a": 0.3, "b": 1.3}, "what it failed says what is hard"
    assert len(out.new) > 12 - (8 if lenient else 0)


async def test_a_passing_failure_is_tried_again_later_and_survives_a_restart(loop: Loop) -> None:
    loop.put(0, 12)
    loop.problem = RetryableError("the store is away")
    assert await loop.daemon.turn()
    assert not await loop.daemon.turn() and "tried again in 30 s: the store is away" in loop.waits
    loop.start()
    assert not await loop.daemon.turn() and loop.jobs == 1
    loop.now += 30 * SECOND_US
    assert await loop.daemon.turn()
    assert not await loop.daemon.turn() and "2 times" in loop.waits
    loop.now += 60 * SECOND_US
    loop.problem = None
    assert await loop.daemon.turn() and loop.made[0].state is State.REGISTERED
    assert read_status(loop.run) is not None and loop.board.status.failure is None


async def test_a_lasting_failure_waits_for_changed_settings_data_or_a_restart(loop: Loop) -> None:
    loop.put(0, 12)
    loop.problem = PermanentError("no such base model", where="[trainer] model", fix="Fetch it.")
    assert await loop.daemon.turn()
    for _ in range(3):
        loop.now += 10_000 * SECOND_US
        assert not await loop.daemon.turn()
    assert loop.waits == "the last job failed and waits for changed settings or data: no such base model ([trainer] model). Fetch it."
    loop.toml.write_text(TOML.replace("min_kept = 10", "min_kept = 11"))
    assert await loop.daemon.turn() and loop.jobs == 2
    assert not await loop.daemon.turn()
    loop.put(20, 11)
    assert await loop.daemon.turn() and loop.jobs == 3
    loop.start()
    assert await loop.daemon.turn() and loop.jobs == 4


async def test_a_rejected_windows_rows_are_no_news_until_settings_change(loop: Loop) -> None:
    loop.gate = GateError("it forgot refunds")
    loop.put(0, 12)
    assert await loop.daemon.turn()
    assert [w.state for w in loop.made] == [State.REJECTED] and loop.made[0].reason
    assert not await loop.daemon.turn()
    assert loop.waits == "0 of 10 new successes, 12 more are back from a window that led nowhere"
    loop.gate = None
    assert not await loop.daemon.turn()
    loop.toml.write_text(TOML.replace("trial_grace_s = 60", "trial_grace_s = 61"))
    assert await loop.daemon.turn() and loop.made[1].state is State.REGISTERED


async def test_a_request_is_answered_once(loop: Loop) -> None:
    loop.toml.write_text(TOML.replace("min_kept = 10", "min_kept = 1000\nmin_requested = 10"))
    loop.put(0, 12)
    assert not await loop.daemon.turn()
    asked = [WindowRequest(lineage=name, reason="failures", bucket=7, detail="refund fails") for name in ("default", "other")]
    loop.desk.store.insert_if_absent(WINDOWS, [row_of(a, loop.now) for a in asked])
    assert await loop.daemon.turn()
    assert loop.made[0].plan.requests == (asked[0].key,)
    loop.put(20, 12)
    loop.now += 100 * SECOND_US
    assert not await loop.daemon.turn() and "asked for" not in loop.waits
    states = {
        row["key"]: (row["state"], row["data"].get("window")) for row in loop.desk.store.by_key(WINDOWS, [a.key for a in asked]).values()
    }
    assert states == {asked[0].key: ("taken", "default-000001"), asked[1].key: ("requested", None)}


async def test_settings_and_topics_that_cannot_be_read_are_said_and_looked_at_again(loop: Loop) -> None:
    loop.put(0, 12)
    loop.toml.write_text("[window]\nmin_keep = 3\n")
    assert not await loop.daemon.turn() and "min_kept" in loop.waits and not loop.board.looked
    loop.toml.write_text(TOML)

    def away() -> list[Record]:
        raise UnreachableError("no Kafka broker answers")

    looker = Looker(lambda: Config.load(loop.toml, state=loop.desk.state), None, loop.clock, away)
    assert not await Daemon(looker, loop.job, loop.board, loop.clock).turn() and loop.waits == "no Kafka broker answers"
    assert await loop.daemon.turn()


async def test_it_stops_at_once_and_a_running_job_with_it(loop: Loop) -> None:
    loop.put(0, 12)
    begun, ended, stop = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def endless(on_event: OnEvent, nice: int) -> Event:
        on_event({"event": "train", "kind": "step", "step": 3, "steps": 9, "loss": 1.25})
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError("never")

    job: Callable[[OnEvent, int], Awaitable[Event]] = endless
    looker = Looker(lambda: Config.load(loop.toml, state=loop.desk.state), None, loop.clock, lambda: [])
    running = asyncio.create_task(Daemon(looker, job, loop.board, loop.clock).run(stop))
    await asyncio.wait_for(begun.wait(), 60)
    assert "stillhouse_trainer_step 3.0" in loop.board.text().decode()
    stop.set()
    await asyncio.wait_for(running, 60)
    assert ended.is_set() and loop.board.status.failure is None
