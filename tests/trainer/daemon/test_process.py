"""The daemon as a process: its ready line, its addresses, kill -9 in the middle of a job, SIGTERM."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from stillhouse.sdk.config import Config
from stillhouse.trainer import windows
from stillhouse.trainer.daemon.status import read_status
from stillhouse.trainer.students import list_students
from stillhouse.trainer.windows_types import State
from tests.conftest import ROOT
from tests.support.waiting import until
from tests.trainer.daemon.test_loop import TOML
from tests.trainer.window_factory import Desk, put, trajectory

FAST = TOML.replace("[trainer]", "[trainer]\nlook_s = 0.05\nretry_s = 0.1\nretry_most_s = 0.2")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    (tmp_path / "stillhouse.toml").write_text(FAST)
    Config.load(tmp_path / "stillhouse.toml", state=tmp_path).state_dir("run")
    made = Desk(tmp_path)
    put(made.store, [trajectory(i) for i in range(12)], 100)
    return made


@contextmanager
def daemon(desk: Desk) -> Iterator[tuple["subprocess.Popen[str]", dict[str, Any]]]:
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.trainer.daemon.process_child", str(desk.state)],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line:
            raise AssertionError(child.communicate()[1])
        yield child, json.loads(line)
    finally:
        child.kill()
        child.communicate()


def get(url: str) -> tuple[int, str]:
    with urllib.request.urlopen(url, timeout=30) as reply:
        return reply.status, reply.read().decode()


def states(desk: Desk) -> list[State]:
    return [w.state for w in windows.list_windows(desk.store)]


def test_killed_in_the_middle_of_a_job_it_goes_on_with_the_open_window(desk: Desk) -> None:
    (desk.state / "hold").touch()
    with daemon(desk) as (child, ready):
        assert ready["ready"] == "trainer" and ready["pid"] == child.pid
        until((desk.state / "held").exists, "training begins")
        job = psutil.Process(int((desk.state / "held").read_text()))
        assert states(desk) == [State.CURATED] and job.nice() == 10
        until(lambda: "stillhouse_trainer_running 1.0" in get(ready["metrics"])[1], "the metrics show the job")
        assert get(ready["url"] + "/healthz")[0] == 200 and json.loads(get(ready["url"] + "/readyz")[1])["ok"]
        os.kill(child.pid, signal.SIGKILL)
        job.kill()  # the machine went down
        psutil.wait_procs([job], timeout=60)
    (desk.state / "hold").unlink()
    with daemon(desk) as (child, _):
        until(lambda: states(desk) == [State.REGISTERED], "the window goes on")
        until(lambda: "registered" in read(desk).waits, "it waits again")
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0
    history = [s for s, _ in windows.list_windows(desk.store)[0].history]
    assert history == [State.CLAIMED, State.CURATED, State.TRAINED, State.EVALUATED, State.REGISTERED]
    assert len(list_students(desk.state / "students")) == 1


def test_a_job_that_outlives_its_daemon_is_not_joined_by_a_second_one(desk: Desk) -> None:
    (desk.state / "hold").touch()
    with daemon(desk) as (child, _):
        until((desk.state / "held").exists, "training begins")
        job = psutil.Process(int((desk.state / "held").read_text()))
        os.kill(child.pid, signal.SIGKILL)
    (desk.state / "hold").unlink()
    with daemon(desk) as (child, _):
        until(lambda: "another trainer is running a window" in read(desk).waits, "the second job sees the first")
        (desk.state / "go").touch()  # its pipe is broken: it ends at its next word, and the window goes on
        psutil.wait_procs([job], timeout=60)
        until(lambda: states(desk) == [State.REGISTERED], "the window goes on")
    assert len(list_students(desk.state / "students")) == 1


def test_sigterm_stops_daemon_and_job(desk: Desk) -> None:
    (desk.state / "hold").touch()
    with daemon(desk) as (child, _):
        until((desk.state / "held").exists, "training begins")
        job = psutil.Process(int((desk.state / "held").read_text()))
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0
        assert not job.is_running()
    assert states(desk) == [State.CURATED]


@pytest.mark.parametrize(("how", "said"), [("passing", "the store is away"), ("dies", "ended by signal 9")])
def test_a_job_that_fails_or_dies_does_not_take_the_daemon_with_it(desk: Desk, how: str, said: str) -> None:
    (desk.state / "fail").write_text(how)
    with daemon(desk) as (child, _):
        until(lambda: (f := read(desk).failure) is not None and f.times >= 2, "it is tried again")
        failure = read(desk).failure
        assert failure is not None and said in failure.what and child.poll() is None
        (desk.state / "fail").unlink()
        until(lambda: states(desk) == [State.REGISTERED], "it goes through")


def test_two_daemons_of_one_folder_do_not_run(desk: Desk) -> None:
    (desk.state / "hold").touch()
    with daemon(desk):
        until((desk.state / "held").exists, "training begins")
        second = subprocess.run(
            [sys.executable, "-m", "tests.trainer.daemon.process_child", str(desk.state)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert second.returncode == 1 and "another trainer runs here" in second.stderr


def read(desk: Desk) -> Any:
    until((desk.state / "run" / "trainer.json").exists, "the first look")
    status = read_status(desk.state / "run")
    assert status is not None
    return status
