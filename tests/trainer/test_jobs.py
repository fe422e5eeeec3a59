"""A window from claim to student, killed at every step on the way."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stillhouse.schemas.errors import PermanentError, RetryableError
from stillhouse.schemas.events import Outcome
from stillhouse.schemas.render import RenderSpec, coverage_hash
from stillhouse.trainer import windows
from stillhouse.trainer.curate.pipeline import Curated, curate
from stillhouse.trainer.decisions import Erasures
from stillhouse.trainer.examples import Example
from stillhouse.trainer.jobs import Job, JobResult, plan_report
from stillhouse.trainer.settings import WindowSettings
from stillhouse.trainer.students import list_students, verify
from stillhouse.trainer.training_job import Progress, TrainJob, TrainResult
from stillhouse.trainer.windows_types import State
from tests.conftest import ROOT
from tests.trainer.curation_factory import TOOLS
from tests.trainer.window_factory import SETTINGS, TRAINER, Desk, erase, fake_train, measured, put, trajectory, with_changes


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    made = Desk(tmp_path)
    put(made.store, [trajectory(i) for i in range(12)], 100)
    return made


def run(desk: Desk, job: Job | None = None) -> JobResult:
    return (job or desk.job()).run(windows.plan(desk.store, SETTINGS))


def test_a_window_becomes_a_student_that_knows_where_it_comes_from(desk: Desk) -> None:
    result = run(desk, desk.job(evaluate=measured(success=0.5, format_errors=0.0)))
    assert result.state is State.REGISTERED and desk.published == [result.student]
    manifest = verify(desk.state / "students" / result.student)
    assert manifest.window == "default-000001" and manifest.dataset_sha256 == result.waterfall["manifest_hash"]
    assert manifest.offsets == {1: (100, 213)} and manifest.teachers == ("teacher:big",)
    assert manifest.evaluation["success"] == 0.5
    render = RenderSpec.load(desk.state / "students" / result.student / "render.json")
    assert render.distilled_on == (coverage_hash("Desk.", TOOLS),)
    assert [e["state"] for e in desk.said if e["event"] == "state"] == ["claimed", "curated", "trained", "evaluated", "registered"]
    assert {e["event"] for e in desk.said} == {"state", "stage", "train"}
    folder = desk.state / "run" / "windows" / "default-000001"
    assert json.loads((folder / "waterfall.json").read_bytes())["manifest_hash"] == manifest.dataset_sha256


def test_a_new_student_is_asked_in_shadow_before_anybody_is_told_of_it(desk: Desk) -> None:
    asked: list[tuple[str, int]] = []
    result = run(desk, desk.job(shadow=lambda folder, say: asked.append((folder.name, len(desk.published)))))
    assert asked == [(result.student, 0)] and desk.published == [result.student]


def test_the_plans_report_is_what_the_run_then_does(desk: Desk) -> None:
    planned = windows.plan(desk.store, SETTINGS)
    report = plan_report(desk.store, planned, SETTINGS, TRAINER.render().for_model(desk.base), desk.base)
    result = desk.job().run(planned)
    assert {k: report[k] for k in result.waterfall} == result.waterfall
    assert {"stages", "supervised_tokens", "manifest_hash"} <= report.keys() and report["mode"] == "fresh"


def test_nothing_to_learn_from_is_rejected_with_the_reason(desk: Desk) -> None:
    put(desk.store, [trajectory(i, Outcome.FAILURE) for i in range(12)])
    result = run(desk)
    assert result.state is State.REJECTED and "no training examples" in result.reason
    assert windows.plan(desk.store, SETTINGS).number == 2


@pytest.mark.parametrize(
    ("facts", "reason"),
    [({"format_errors": 0.05, "parent_format_errors": 0.01}, "format errors")],
)
def test_a_gate_that_says_no_rejects(desk: Desk, facts: dict[str, float], reason: str) -> None:
    result = run(desk, desk.job(evaluate=measured(**facts)))
    assert result.state is State.REJECTED and reason in result.reason
    assert not list_students(desk.state / "students") and desk.published == []


def test_a_row_erased_while_it_was_trained_on_rejects(desk: Desk) -> None:
    def train(job: TrainJob, examples: Sequence[Example], validation: Sequence[Example], progress: Progress) -> TrainResult:
        erase(desk.store, examples[0].key)
        return fake_train(job, examples, validation, progress)

    result = run(desk, desk.job(train=train))
    assert result.state is State.REJECTED and "erased row" in result.reason


def test_a_subject_that_asks_to_be_forgotten_during_training_rejects(desk: Desk) -> None:
    put(desk.store, [trajectory(i, subject=f"s{i}") for i in range(12)], 100)
    asked = Erasures(offset=7, subjects=frozenset(("shop", f"s{i}") for i in range(12)))
    answers = iter([Erasures(offset=3), asked])
    result = run(desk, desk.job(erasures=lambda: next(answers)))
    assert result.state is State.REJECTED and "erased row" in result.reason


def test_the_manifest_names_the_erasure_that_the_rows_were_last_checked_against(desk: Desk) -> None:
    offsets = iter([3, 5])
    result = run(desk, desk.job(erasures=lambda: Erasures(offset=next(offsets), subjects=frozenset({("shop", "nobody")}))))
    assert verify(desk.state / "students" / result.student).erasure_offset == 5
    put(desk.store, [trajectory(20)], 400)
    assert verify(desk.state / "students" / run(desk).student).erasure_offset == -1  # nobody was asked


def test_a_parent_that_is_revoked_during_training_is_not_built_on(desk: Desk) -> None:
    continues = with_changes(SETTINGS, max_tokens=1)
    parent = desk.job(continues).run(windows.plan(desk.store, continues)).student
    put(desk.store, [trajectory(i) for i in range(20, 26)], 400)
    answers = iter([set(), {parent}])
    planned = windows.plan(desk.store, continues)
    assert (planned.mode, planned.parent) == ("continue", parent)
    result = desk.job(continues, barred=lambda: next(answers)).run(planned)
    assert result.state is State.REJECTED and f"the parent {parent} was rolled back" in result.reason


def test_a_pickle_among_the_candidates_files_rejects(desk: Desk) -> None:
    def train(job: TrainJob, examples: Sequence[Example], validation: Sequence[Example], progress: Progress) -> TrainResult:
        result = fake_train(job, examples, validation, progress)
        (result.candidate / "optimizer.pt").write_bytes(b"\x80\x04.")
        return result

    result = run(desk, desk.job(train=train))
    assert result.state is State.REJECTED and "optimizer.pt" in result.reason


def test_what_may_work_later_leaves_the_window_open_and_goes_on(desk: Desk) -> None:
    def away(*_: object) -> TrainResult:
        raise RetryableError("the store is away")

    with pytest.raises(RetryableError):
        run(desk, desk.job(train=away))
    assert windows.show(desk.store, "default-000001").state is State.CURATED
    assert desk.job().run().state is State.REGISTERED
    with pytest.raises(PermanentError, match="no window to go on with"):
        desk.job().run()


def test_lost_files_are_curated_again_and_must_be_the_same(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def of_another_release(loaded: Any, ledger: Any, settings: WindowSettings, *rest: Any, **more: Any) -> Curated:
        return curate(loaded, ledger, with_changes(settings, recovery_share=0.7), *rest, **more)

    def crash(*_: object) -> TrainResult:
        raise RetryableError("stopped")

    with pytest.raises(RetryableError):
        run(desk, desk.job(train=crash))
    shutil.rmtree(desk.state / "run")
    with monkeypatch.context() as updated:
        updated.setattr("stillhouse.trainer.windows.curate", of_another_release)
        changed = desk.job().run()
    assert changed.state is State.REJECTED and "no longer curates" in changed.reason

    with pytest.raises(RetryableError):
        run(desk, desk.job(train=crash))
    shutil.rmtree(desk.state / "run")
    assert desk.job(with_changes(SETTINGS, recovery_share=0.7)).run().state is State.REGISTERED  # settings of another day change nothing


def test_two_trainers_of_one_state_folder_do_not_meet(desk: Desk) -> None:
    def other(*_: object) -> TrainResult:
        desk.job().run()
        raise AssertionError("the second trainer got in")

    with pytest.raises(RetryableError, match="another trainer"):
        run(desk, desk.job(train=other))


# Readings of the clock at which the trainer is killed, one after the other on one window. Each is the moment after a step's
# artefact exists and before the state says so.
KILLS = [
    (1, None),  # before the claim
    (2, State.CLAIMED),  # claimed, no task placed
    (2, State.CLAIMED),  # tasks placed, examples written
    (3, State.CURATED),  # trained
    (2, State.TRAINED),  # evaluated
    (3, State.EVALUATED),  # the student's folder is there, the topic was told
]


def test_killed_at_every_step_it_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    calm, killed = Desk(tmp_path / "calm"), Desk(tmp_path / "killed")
    for desk in (calm, killed):
        put(desk.store, [trajectory(i) for i in range(12)], 100)
    expected = run(calm)
    for reading, state in KILLS:
        _kill_at(killed.state, reading)
        assert [w.state for w in windows.list_windows(killed.store)] == ([state] if state else [])
    result = killed.job().run()
    assert result.state is State.REGISTERED and result.waterfall == expected.waterfall
    assert [m.name for m in list_students(killed.state / "students")] == [result.student] == killed.published
    history = windows.show(killed.store, result.window).history
    assert [s for s, _ in history] == [State.CLAIMED, State.CURATED, State.TRAINED, State.EVALUATED, State.REGISTERED]


def _kill_at(state: Path, reading: int) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.trainer.window_child", str(state), str(reading)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    line = child.stdout.readline()
    child.kill()
    _, errors = child.communicate(timeout=60)
    assert line == "there\n", errors
