"""A student server that does not come up: said why, and nothing of it left."""

import sys
from pathlib import Path

import pytest

from stillhouse.schemas.errors import PermanentError, RetryableError, UnreachableError
from stillhouse.trainer.evaluation import engine
from tests.support.pipes import open_pipes

SILENT = "import signal; signal.sigwait([signal.SIGTERM])"
NOBODY = 'import json; print(json.dumps({"url": "http://127.0.0.1:1"}), flush=True); ' + SILENT


@pytest.mark.parametrize(
    ("script", "error", "said"),
    [
        ("raise SystemExit('no such model')", PermanentError, "ended with exit code 1: no such model"),
        (SILENT, RetryableError, "was not ready within 0.1 s"),
        (NOBODY, UnreachableError, "does not answer"),
    ],
)
def test_a_server_that_does_not_come_up_is_said_and_leaves_no_pipe(
    script: str, error: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "COMMAND", (sys.executable, "-c", script))
    before, patience = open_pipes(), 0.1 if script is SILENT else 60
    with pytest.raises(error, match=said) as kept, engine.student_engine(tmp_path, log=tmp_path / "log", ready_s=patience):
        raise AssertionError("it came up")
    assert open_pipes() == before, kept  # an error that is kept keeps its frames, and what they hold
