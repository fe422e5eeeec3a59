"""Validation: what steers windows and feeds gates is whole, on the same tasks for both, and names the families that were lost."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stillhouse.schemas.errors import GateError, PermanentError, RetryableError, UsageError
from stillhouse.trainer import validation
from stillhouse.trainer.evaluation.benchmark import BenchTask
from stillhouse.trainer.evaluation.gate import FamilyGate
from stillhouse.trainer.settings import TrainerSettings
from stillhouse.trainer.validation import Validation
from tests.trainer.evaluation.fakes import FakeBenchmark

PARENT = "student-1-0a1b2c3d"
ASKED = f"weights-{hashlib.sha256(b'parent').hexdigest()[:16]}"  # what the parent is called by whoever plays its tasks
Play = Callable[[str, BenchTask, int], bool]


class Bench(FakeBenchmark):
    """Made as `[trainer] benchmark` is."""

    def __init__(self, counts: Mapping[str, int], seed: int) -> None:
        super().__init__(counts["validation"], lambda name, task, times: True, ("refund", "cancel"))


class Engine:
    """A student server that nobody answers for: the benchmark plays without it."""

    base_url = "http://127.0.0.1:9/v1"

    def load(self, name: str, path: Path) -> None:
        assert path.is_dir()

    def unload(self, name: str) -> None: ...


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Play], tuple[Validation, FakeBenchmark]]:
    @contextmanager
    def engine(*_: Any, **__: Any) -> Iterator[Engine]:
        yield Engine()

    monkeypatch.setattr(validation, "student_engine", engine)

    def make(play: Play) -> tuple[Validation, FakeBenchmark]:
        found = Validation(settings(), tmp_path / "base", tmp_path / "log", tmp_path / "work")
        found.benchmark = FakeBenchmark(24, play, ("refund", "cancel"))
        return found, found.benchmark

    return make


def settings(tasks: int = 24) -> TrainerSettings:
    return TrainerSettings(benchmark="tests.trainer.evaluation.test_validation:Bench", benchmark_tasks=tasks)


@pytest.fixture
def candidate(tmp_path: Path) -> Path:
    return folder(tmp_path / "windows" / "w-1" / "training" / "candidate", b"candidate")


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    return folder(tmp_path / "students" / PARENT, b"parent")


def folder(path: Path, weights: bytes) -> Path:
    path.mkdir(parents=True)
    (path / "adapter_model.safetensors").write_bytes(weights)
    return path


def silent(event: dict[str, Any]) -> None: ...


Make = Callable[[Play], tuple[Validation, FakeBenchmark]]


def test_a_server_that_answers_nothing_is_no_measurement(made: Make, candidate: Path) -> None:
    def down(name: str, task: BenchTask, times: int) -> bool:
        raise PermanentError("the model answered 400")

    with pytest.raises(RetryableError, match=r"24 validation tasks of candidate have no outcome .*400"):
        made(down)[0](candidate, None, silent)


def test_what_is_missing_is_asked_again_and_nothing_else(made: Make, candidate: Path, parent: Path) -> None:
    def refunds_fail(name: str, task: BenchTask, times: int) -> bool:
        if task.family == "refund" and name == ASKED:
            raise PermanentError("the model answered 400")
        return True

    with pytest.raises(RetryableError, match=f"12 validation tasks of {PARENT}"):
        made(refunds_fail)[0](candidate, parent, silent)
    later, benchmark = made(lambda name, task, times: True)
    facts = later(candidate, parent, silent)
    assert set(benchmark.begun) == {(ASKED, f"validation-{i}") for i in range(0, 24, 2)}
    assert (facts.success, facts.parent_success) == (1.0, 1.0)
    assert facts.report["candidate"]["n"] == facts.report["parent"]["n"] == 24


def test_a_candidate_that_became_a_parent_is_not_asked_again(made: Make, candidate: Path, tmp_path: Path) -> None:
    made(lambda name, task, times: task.family == "cancel")[0](candidate, None, silent)
    registered = folder(tmp_path / "students" / "student-2-00000000", b"candidate")
    later, benchmark = made(lambda name, task, times: True)
    facts = later(folder(tmp_path / "next", b"next"), registered, silent)
    assert (facts.success, facts.parent_success) == (1.0, 0.5) and len(benchmark.begun) == 24


def test_another_candidate_of_a_window_of_the_same_name_is_measured_itself(made: Make, candidate: Path) -> None:
    assert made(lambda name, task, times: True)[0](candidate, None, silent).success == 1.0
    (candidate / "adapter_model.safetensors").write_bytes(b"other weights")
    assert made(lambda name, task, times: False)[0](candidate, None, silent).success == 0.0


def test_a_lost_family_is_in_the_report_with_the_difference(made: Make, candidate: Path, parent: Path) -> None:
    facts = made(lambda name, task, times: name == ASKED or task.family == "cancel")[0](candidate, parent, silent)
    assert facts.failure_rates == {"refund": 1.0, "cancel": 0.0}
    assert facts.report["difference"]["value"] == -0.5 and facts.report["difference"]["n"] == 24
    stored = msgspec.json.decode(msgspec.json.encode(facts), type=type(facts))
    gate = msgspec.convert(stored.report["family_gate"], FamilyGate)
    assert {t.family: (t.tasks, t.verdict) for t in gate.tests} == {"refund": (12, "worse"), "cancel": (12, "not worse")}
    with pytest.raises(GateError, match="refund 12→0 of 12"):
        gate.require()


def test_without_a_parent_there_is_no_family_gate(made: Make, candidate: Path) -> None:
    assert "family_gate" not in made(lambda name, task, times: True)[0](candidate, None, silent).report


def test_a_benchmark_without_tasks_or_that_is_not_there_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no validation tasks"):
        Validation(settings(0), tmp_path, tmp_path, tmp_path)
    with pytest.raises(UsageError, match="the benchmark cannot be loaded"):
        Validation(TrainerSettings(benchmark="tests.trainer.evaluation.test_validation:Nothing"), tmp_path, tmp_path, tmp_path)
