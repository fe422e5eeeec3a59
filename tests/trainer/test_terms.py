"""A window goes on as it was claimed; what is wrong with options or the machine neither claims nor rejects one."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stillhouse.schemas.errors import ExitCode, MissingExtraError, PermanentError, RetryableError, UsageError
from stillhouse.trainer import process, windows
from stillhouse.trainer.examples import Example
from stillhouse.trainer.jobs import JobResult, Steps
from stillhouse.trainer.jobs_data import WindowData
from stillhouse.trainer.recipes import RECIPES
from stillhouse.trainer.students import list_students, verify
from stillhouse.trainer.training_job import RECIPE_NAMES, Progress, TrainJob, TrainResult
from stillhouse.trainer.windows_types import EvaluatedFacts, State, Window
from tests.trainer.window_factory import SETTINGS, Desk, fake_train, put, trajectory

WINDOW = "default-000001"
FIRST = ("--set=trainer.recipe=bc-step", "--set=trainer.max_steps=20", "--set=window.size=11", "--family=a", "--family=b")


class Bench:
    """A trainer's process with a training and an evaluation that can be told to fail, once."""

    def __init__(self, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.desk = Desk(state)
        put(self.desk.store, [trajectory(i) for i in range(12)], 100)
        self.config = state / "stillhouse.toml"
        self.config.write_text(f'[trainer]\nmodel = "{self.desk.base}"\ngrammar = "bare-json"\n[window]\nstratum_floor = 1000\n')
        self.jobs: list[TrainJob] = []
        self.fails: dict[str, Exception] = {}
        self.check: Callable[[TrainJob], None] | None = None
        monkeypatch.setattr(process, "_steps", lambda *_: Steps(train=self._train, evaluate=self._evaluate, check=self.check))
        curate = WindowData.curate

        def may_fail(*parts: Any) -> Any:
            self._may_fail("curate")
            return curate(*parts)

        monkeypatch.setattr(WindowData, "curate", may_fail)

    def run(self, *options: str) -> JobResult:
        return process.run_window(process.parser().parse_args(self.line(*options)))

    def line(self, *options: str) -> list[str]:
        return ["run", "--state", str(self.desk.state), "--config", str(self.config), *options]

    def window(self) -> Window:
        return windows.show(self.desk.store, WINDOW)

    def _train(self, job: TrainJob, examples: Sequence[Example], validation: Sequence[Example], progress: Progress) -> TrainResult:
        self.jobs.append(job)
        self._may_fail("train")
        return fake_train(job, examples, validation, progress)

    def _evaluate(self, *_: object) -> EvaluatedFacts:
        self._may_fail("evaluate")
        return EvaluatedFacts()

    def _may_fail(self, step: str) -> None:
        if step in self.fails:
            raise self.fails.pop(step)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


@pytest.mark.parametrize(("step", "state"), [("curate", State.CLAIMED), ("train", State.CURATED), ("evaluate", State.TRAINED)])
def test_a_window_that_goes_on_keeps_what_it_was_claimed_with(bench: Bench, step: str, state: State) -> None:
    bench.fails[step] = RetryableError("stopped")
    with pytest.raises(RetryableError):
        bench.run(*FIRST)
    assert bench.window().state is state
    bench.config.write_text(bench.config.read_text().replace("bare-json", "tool_call") + "[kafka]\n")  # the view of another day
    result = bench.run()
    manifest = verify(bench.desk.state / "students" / result.student)
    assert (manifest.recipe, manifest.settings["max_steps"]) == ("bc-step", 20)
    assert {(j.recipe, j.settings.max_steps, j.render.grammar) for j in bench.jobs} == {("bc-step", 20, "bare-json")}


@pytest.mark.parametrize(("step", "state"), [("curate", State.CLAIMED), ("train", State.CURATED)])
def test_a_window_that_goes_on_is_curated_as_it_was_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, state: State
) -> None:
    def curated(bench: Bench) -> str:
        assert bench.run(*FIRST).state is State.REGISTERED
        facts = bench.window().curated
        assert facts is not None
        return facts.manifest_hash

    def otherwise(bench: Bench) -> None:
        bench.config.write_text(bench.config.read_text() + "per_step = true\nreasoning_rows = 0\n")

    undisturbed = curated(Bench(tmp_path / "undisturbed", monkeypatch))
    from_the_start = Bench(tmp_path / "other", monkeypatch)
    otherwise(from_the_start)
    assert curated(from_the_start) != undisturbed
    edited = Bench(tmp_path / "edited", monkeypatch)
    edited.fails[step] = RetryableError("stopped")
    with pytest.raises(RetryableError):
        edited.run(*FIRST)
    assert edited.window().state is state
    otherwise(edited)
    for examples in (tmp_path / "edited" / "run" / "windows" / WINDOW).glob("*.jsonl"):
        examples.unlink()  # so they are made again
    assert curated(edited) == undisturbed


def test_a_window_from_before_its_curation_was_kept_is_curated_by_todays(bench: Bench) -> None:
    bench.fails["curate"] = RetryableError("stopped")
    with pytest.raises(RetryableError):
        bench.run(*FIRST)
    stored = msgspec.to_builtins(bench.window(), str_keys=True)
    del stored["plan"]["terms"]["curation"]
    bench.desk.store.update("windows", WINDOW, {"data": stored})
    assert bench.run("--set=window.per_step=true", "--set=trainer.max_steps=20").state is State.REGISTERED
    terms = bench.window().plan.terms
    assert terms is not None and terms.curation is None


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--set=trainer.recipe=weighted", "recipe bc-step, not weighted"),
        ("--set=trainer.max_steps=3", "max_steps 20, not 3"),
        ("--set=trainer.grammar=tool_call", "grammar bare-json, not tool_call"),
        ("--set=trainer.model=smollm2-135m", "not smollm2-135m"),
        ("--set=window.size=3", "size 11, not 3"),
        ("--set=window.per_step=true", "per_step False, not True"),
        ("--set=window.gamma=2", "gamma 1.0, not 2.0"),
        ("--mode=continue", "mode fresh, not continue"),
        ("--family=a", "families a, b, not a"),
        ("--weight=a=2", "weights None, not {'a': 2.0}"),
    ],
)
def test_an_option_that_contradicts_the_open_window_is_refused(bench: Bench, option: str, said: str) -> None:
    bench.fails["train"] = RetryableError("stopped")
    with pytest.raises(RetryableError):
        bench.run(*FIRST)
    before = bench.window()
    with pytest.raises(UsageError) as error:
        bench.run(option)
    assert said in str(error.value) and WINDOW in str(error.value) and "Run it to its end first" in str(error.value)
    assert bench.window() == before and len(bench.jobs) == 1
    assert bench.run(*FIRST, "--mode=fresh", "--set=trainer.answer_tokens=9").state is State.REGISTERED


def test_a_window_from_before_its_terms_were_kept_goes_on_with_todays(bench: Bench) -> None:
    bench.fails["train"] = RetryableError("stopped")
    with pytest.raises(RetryableError):
        bench.run(*FIRST)
    stored = msgspec.to_builtins(bench.window(), str_keys=True)
    del stored["plan"]["terms"]
    bench.desk.store.update("windows", WINDOW, {"data": stored})
    assert bench.window().plan.terms is None
    result = bench.run("--set=trainer.recipe=weighted", "--family=a")
    assert verify(bench.desk.state / "students" / result.student).recipe == "weighted"


@pytest.mark.parametrize(
    ("option", "said"), [("--set=trainer.recipe=nonsense", "no recipe 'nonsense'"), ("--mode=foo", "no such mode: foo")]
)
def test_a_typo_claims_nothing_and_says_what_there_is(bench: Bench, option: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert process.main(bench.line(option)) == ExitCode.USAGE
    event = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert event["event"] == "error" and event["what"] == said and "Use one of" in event["fix"]
    assert windows.list_windows(bench.desk.store) == []


def test_what_training_would_refuse_at_once_is_not_claimed(bench: Bench) -> None:
    def check(job: TrainJob) -> None:
        raise UsageError(f"not {job.settings.rank}")

    bench.check = check
    with pytest.raises(UsageError, match="not 3"):
        bench.run("--set=trainer.rank=3")
    assert windows.list_windows(bench.desk.store) == []


def test_what_training_would_refuse_is_said_before_a_window_that_goes_on_is_curated(bench: Bench) -> None:
    bench.fails["curate"] = RetryableError("stopped")
    with pytest.raises(RetryableError):
        bench.run()

    def check(job: TrainJob) -> None:
        raise PermanentError("the parent's folder is gone")

    bench.check, bench.fails["curate"] = check, AssertionError("curated")
    with pytest.raises(PermanentError, match="the parent's folder is gone"):
        bench.run()
    assert bench.window().state is State.CLAIMED
    bench.check = None
    bench.fails.clear()
    assert bench.run().state is State.REGISTERED


@pytest.mark.parametrize(
    ("step", "state", "fault"),
    [
        ("evaluate", State.TRAINED, PermanentError("the student server ended with exit code 1")),
        ("train", State.CURATED, MissingExtraError("training", "trainer")),
        ("curate", State.CLAIMED, UsageError("the environment cannot be loaded")),
    ],
)
def test_a_fault_of_the_machine_leaves_the_window_as_it_is(bench: Bench, step: str, state: State, fault: Exception) -> None:
    bench.fails[step] = fault
    with pytest.raises(type(fault)):
        bench.run()
    assert bench.window().state is state
    assert bench.run().state is State.REGISTERED


def test_a_base_model_that_changed_does_not_reject(bench: Bench) -> None:
    spare = bench.desk.base / "spare.json"
    bench.fails["evaluate"] = RetryableError("stopped")
    with pytest.raises(RetryableError):
        bench.run()
    spare.write_text("{}")
    with pytest.raises(PermanentError, match="the base model has changed"):
        bench.run()
    assert bench.window().state is State.EVALUATED
    spare.unlink()
    assert bench.run().state is State.REGISTERED


def test_a_student_of_another_store_is_not_taken_for_this_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Bench(tmp_path / "first", monkeypatch), Bench(tmp_path / "second", monkeypatch)
    put(second.desk.store, [trajectory(20)], 900)
    (tmp_path / "second" / "students").symlink_to(tmp_path / "first" / "students")
    names = [bench.desk.job().run(windows.plan(bench.desk.store, SETTINGS)).student for bench in (first, second)]
    assert [m.name for m in list_students(tmp_path / "first" / "students")] == names and len(set(names)) == 2


def test_the_names_of_recipes_are_the_recipes() -> None:
    assert tuple(RECIPES) == RECIPE_NAMES
