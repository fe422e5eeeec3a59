"""A training whose validation loss does not fall stops at the same step, however often it was interrupted."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.trainer import training
from stillhouse.trainer.training import train
from stillhouse.trainer.training_job import TrainEvent, TrainJob, TrainResult, TrainSettings
from stillhouse.trainer.training_trainer import newest_checkpoint
from tests.trainer.test_training import measured, nonsense
from tests.trainer.training_factory import Heard, base_in, held, job

pytestmark = pytest.mark.model
SETTINGS = {"epochs": 20, "learning_rate": 0.05, "evaluations": 40}


class Interrupted(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_in(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """The job, uninterrupted: it stops early."""
    result = run(job(base, tmp_path_factory.mktemp("whole"), settings=SETTINGS))
    assert result.stopped_early
    return result


def run(made: TrainJob, say: Callable[[TrainEvent], None] | None = None) -> TrainResult:
    return train(made, nonsense(8), held(), say or Heard())


def test_patience_goes_on_where_it_was(base: Path, tmp_path: Path, whole: TrainResult) -> None:
    def stop(event: TrainEvent) -> None:
        if event.kind == "step" and event.step == whole.steps - 1:  # two of three measurements in a row did not fall
            raise Interrupted

    made = job(base, tmp_path, settings=SETTINGS)
    with pytest.raises(Interrupted):
        run(made, stop)
    resumed = run(made)
    assert (resumed.steps, resumed.stopped_early) == (whole.steps, True)
    assert resumed.losses == pytest.approx(whole.losses, abs=1e-6)
    assert resumed.validation_losses == whole.validation_losses
    assert measured(base, resumed.candidate) == pytest.approx(measured(base, whole.candidate), abs=1e-6)


@pytest.mark.parametrize("held_out", [True, False])
def test_what_had_ended_is_not_trained_further(
    base: Path, tmp_path: Path, whole: TrainResult, monkeypatch: pytest.MonkeyPatch, held_out: bool
) -> None:
    made = job(base, tmp_path / "cut", settings=SETTINGS if held_out else {"max_steps": 3})
    sides = nonsense(8), held() if held_out else []
    with monkeypatch.context() as patched:
        patched.setattr(training, "save_adapter", lambda *_, **__: (_ for _ in ()).throw(Interrupted))
        with pytest.raises(Interrupted):
            train(made, *sides, Heard())
    heard = Heard()
    resumed = train(made, *sides, heard)
    calm = whole if held_out else train(job(base, tmp_path / "calm", settings={"max_steps": 3}), *sides, Heard())
    assert resumed.steps == calm.steps and resumed.losses == calm.losses and heard.of("step") == []
    assert resumed.tokens == calm.tokens and resumed.stopped_early is calm.stopped_early
    assert measured(base, resumed.candidate) == pytest.approx(measured(base, calm.candidate), abs=1e-6)


def test_the_defaults_can_stop_before_the_end() -> None:
    assert TrainSettings().patience < TrainSettings().evaluations - 1


def test_a_checkpoint_loses_its_mark_before_its_files(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    rmtree = shutil.rmtree

    def spy(path: Any, *more: Any, **named: Any) -> None:
        if Path(path).name.startswith("checkpoint-"):
            seen.append((Path(path) / "whole").exists())
            if len(seen) == 2:
                (Path(path) / "trainer_state.json").unlink()
                raise Interrupted  # half deleted
        rmtree(path, *more, **named)

    made = job(base, tmp_path, settings=SETTINGS | {"evaluations": 80, "patience": 99})
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", spy)
        with pytest.raises(Interrupted):
            run(made)
    assert seen == [False, False]
    left = sorted(tmp_path.glob("checkpoints/checkpoint-*/whole"))
    newest = newest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None and (newest / "trainer_state.json").exists() and 1 <= len(left) <= 2
