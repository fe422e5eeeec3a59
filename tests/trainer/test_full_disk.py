"""No room to write: one sentence that names the folder, and the window goes on when there is room."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from stillhouse.schemas.errors import PermanentError, RetryableError
from stillhouse.trainer import windows
from stillhouse.trainer.disk import names_full_disk
from stillhouse.trainer.windows_types import State
from tests.conftest import ROOT
from tests.trainer.window_factory import Desk, put, trajectory

# Files may not grow over so many bytes (0: no limit): enough for curation, not for a checkpoint.
CHILD = """
import resource, sys
from pathlib import Path
from stillhouse.schemas.errors import StillhouseError
from stillhouse.trainer import windows
from stillhouse.trainer.jobs import Job, Steps
from stillhouse.trainer.settings import TrainerSettings
from stillhouse.trainer.training import train
from tests.trainer.window_factory import SETTINGS, Desk

desk = Desk(Path(sys.argv[1]))
settings = TrainerSettings(grammar="bare-json", threads=1, max_steps=2, probe_candidates=2)
job = Job(desk.store, desk.state, Path(sys.argv[2]), SETTINGS, settings, Steps(train=train))
planned = None if windows.open_window(desk.store, "default") else windows.plan(desk.store, SETTINGS)
if int(sys.argv[3]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    result = job.run(planned)
    print(result.state, result.reason)
except StillhouseError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.model
def test_a_training_that_finds_no_room_says_so_and_goes_on_later(tmp_path: Path) -> None:
    from stillhouse.trainer import models

    desk, base = Desk(tmp_path), models.tiny(tmp_path / "tiny", 1)
    put(desk.store, [trajectory(i) for i in range(12)], 100)

    def child(limit: int) -> str:
        command = [sys.executable, "-c", CHILD, str(tmp_path), str(base), str(limit)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for limit in (60_000, 200_000):
        said = child(limit)
        assert said.startswith("RetryableError there is no room to write") and str(tmp_path) in said and "Free some space" in said
        (window,) = windows.list_windows(desk.store)
        assert window.state is State.CURATED
    assert child(0).strip() == State.REGISTERED.value


# What writes outside a window's job: whole or not at all, and said in a sentence; the daemon goes on without its status file.
OUTSIDE = """
import resource, sys
from pathlib import Path
from stillhouse.schemas.errors import StillhouseError
from stillhouse.trainer import models, shadow
from stillhouse.trainer.daemon.board import Board
from stillhouse.trainer.daemon.status import read_status
from stillhouse.trainer.shadow_score import figures

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def empty_report(made_at):
    return shadow.ShadowReport(
        student="student-1-00000000", manifest_sha256="0" * 64, lineage="default", window="default-000001", made_at=made_at,
        settings=shadow.ShadowSettings(), eligible=0, left_out=shadow.LeftOut(), all=figures([]), families={},
        marginal=shadow.Marginal(seconds_per_step=None, usd_per_step=None, basis=""), scores=(),
    )

run = Path(sys.argv[1])
saved = shadow.save(empty_report(1), run).read_bytes()
board = Board(run, lambda: 0)
board.away("before")
limit(100)
for write in (lambda: shadow.save(empty_report(2), run), lambda: models.tiny(run / "models" / "tiny", 1)):
    try:
        write()
        print("written")
    except StillhouseError as error:
        print(type(error).__name__, error)
board.away("meanwhile")
board.away("meanwhile still")
print(read_status(run).waits, "|", board.status.waits)
limit(resource.RLIM_INFINITY)
board.away("after")
print(read_status(run).waits)
print(shadow.save(empty_report(1), run).read_bytes() == saved, models.tiny(run / "models" / "tiny", 1).name)
"""


@pytest.mark.model
def test_what_is_written_outside_a_window_says_so_too_and_the_daemon_goes_on(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", OUTSIDE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    *said, status, later, whole = [line for line in done.stdout.splitlines() if "no room for the status file" not in line]
    for line, folder, then in zip(said, ("shadow", "models"), ("shadow the student again.", "make the model again."), strict=True):
        assert line.startswith("RetryableError there is no room to write") and f"({tmp_path / folder})" in line and line.endswith(then)
    assert (status, later, whole) == ("before | meanwhile still", "after", "True tiny")
    assert (done.stdout + done.stderr).count("no room for the status file") == 1


def test_it_is_said_once_by_whoever_is_closest_to_the_file(tmp_path: Path) -> None:
    with pytest.raises(RetryableError) as told, names_full_disk(tmp_path), names_full_disk(tmp_path / "near", "try again"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(told.value).count("no room") == 1 and told.value.where == str(tmp_path / "near") and told.value.fix.endswith("try again.")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "x"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 199488 vs 199376"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        PermanentError("the store refused: LanceError(IO): No space left on device (os error 28)"),
    ],
)
def test_each_librarys_word_for_it_is_understood(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(RetryableError) as told, names_full_disk(tmp_path):
        raise error
    assert str(tmp_path) in str(told.value) and "goes on from where it was" in str(told.value)


def test_other_errors_pass_through(tmp_path: Path) -> None:
    for error in (OSError(errno.EACCES, "Permission denied"), RuntimeError("no"), PermanentError("no")):
        with pytest.raises(type(error)) as told, names_full_disk(tmp_path):
            raise error
        assert told.value is error
