"""Why the loop waits: the triggers of the next window, as `[window]` sets them, on what the lineage has not learned from yet."""

import os
from pathlib import Path

from stillhouse.console import context, status
from stillhouse.console.stack import record as records
from stillhouse.console.stack.process import create_time
from stillhouse.schemas.events import Outcome
from stillhouse.trainer import windows
from stillhouse.trainer.settings import WindowSettings
from tests.trainer.window_factory import SETTINGS, Desk, put, trajectory

HOUR = 3_600_000_000
WINDOW = WindowSettings(min_kept=5, max_age_hours=24.0)


def test_a_window_is_due_when_enough_is_new_or_when_it_is_old(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    put(desk.store, [trajectory(i) for i in range(3)])
    put(desk.store, [trajectory(i, Outcome.FAILURE) for i in range(20, 30)])
    pool = windows.waiting(desk.store, "default")
    assert status.next_window(pool, HOUR, WINDOW) == "3 new successes: the next window is due at 5, or when the oldest is 24 hours old"
    assert status.next_window(pool, 24 * HOUR, WINDOW).startswith("the next window is due, new successes are 24.0 hours old: ")
    put(desk.store, [trajectory(i) for i in range(3, 6)])
    assert status.next_window(windows.waiting(desk.store, "default"), HOUR, WINDOW).startswith("the next window is due, 6 new successes: ")


def test_what_a_student_has_learned_from_is_not_new(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    put(desk.store, [trajectory(i) for i in range(6)])
    assert desk.job().run(windows.plan(desk.store, SETTINGS)).student
    assert status.next_window(windows.waiting(desk.store, "default"), 99 * HOUR, WINDOW).startswith("0 new successes: ")


def test_status_of_a_running_stack_goes_by_the_lineages_pool(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    put(desk.store, [trajectory(i) for i in range(6)])
    mine = records.ProcessId(pid=os.getpid(), started=create_time(os.getpid()))
    records.write(tmp_path, records.StackRecord(bootstrap_servers="127.0.0.1:1", supervisor=mine, pids={"ingest": mine}))
    assert "the next window is due, new successes are" in status.gather(context.load(tmp_path))["waits"]
    assert desk.job().run(windows.plan(desk.store, SETTINGS)).student
    assert status.gather(context.load(tmp_path))["waits"].startswith("0 new successes: the next window is due at 100")
