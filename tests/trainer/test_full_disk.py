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
