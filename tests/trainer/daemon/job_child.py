"""A job of the daemon's tests: `python -m tests.trainer.daemon.job_child STATE`.

It runs the real `Job` with steps that train nothing. A file `fail` in the state folder holds what it ends with instead (`passing`,
`permanent`, `dies`); a file `hold` makes training wait for the file `go`, so that a test can kill what waits.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from stillhouse.schemas.errors import PermanentError, RetryableError, StillhouseError
from stillhouse.sdk.config import Config
from stillhouse.trainer import planning, windows
from stillhouse.trainer.examples import Example
from stillhouse.trainer.settings import TrainerSettings, WindowSettings
from stillhouse.trainer.training_job import Progress, TrainEvent, TrainJob, TrainResult
from tests.support.waiting import until
from tests.trainer.window_factory import Desk, fake_train, measured


def main() -> int:
    state = Path(sys.argv[1])
    desk = Desk(state)
    config = Config.load(state / "stillhouse.toml", state=state)
    window, trainer = config.section("window", WindowSettings), config.section("trainer", TrainerSettings)

    def train(job: TrainJob, examples: Sequence[Example], validation: Sequence[Example], progress: Progress) -> TrainResult:
        progress(TrainEvent(kind="step", step=1, steps=2, loss=1.5))
        if (state / "hold").exists():
            (state / "held").write_text(str(os.getpid()))
            until((state / "go").exists, "the test lets training go")
        return fake_train(job, examples, validation, progress)

    job = desk.job(window, train=train, evaluate=measured(success=0.5, failure_rates={"a": 0.0, "b": 1.0}))
    job.clock, job.say = windows.wall_clock, say
    try:
        _fail(state)
        going = windows.open_window(desk.store, window.lineage)
        result = job.run(None if going else planning.next_plan(desk.store, window, trainer, None))
    except StillhouseError as error:
        passing = isinstance(error, RetryableError)
        say({"event": "error", "what": error.what, "where": error.where, "fix": error.fix, "retryable": passing})
        return error.exit_code
    say({"event": "result", "window": result.window, "state": result.state.value, "student": result.student, "reason": result.reason})
    return 4 if result.state == "rejected" else 0


def say(event: dict[str, object]) -> None:
    print(json.dumps(event, default=str), flush=True)


def _fail(state: Path) -> None:
    if not (state / "fail").exists():
        return
    how = (state / "fail").read_text()
    if how == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    raise RetryableError("the store is away") if how == "passing" else PermanentError("the base model has changed")


if __name__ == "__main__":
    sys.exit(main())
