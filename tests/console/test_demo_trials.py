"""What the demo reads from the log of a canary, and what it makes of it."""

from pathlib import Path

import msgspec
import pytest

from stillhouse.console.demo.noise import HIGH, LOW, NEAR, bisected
from stillhouse.console.demo.run import Story
from stillhouse.console.demo.settings import FAST, FULL, DemoSettings, as_toml
from stillhouse.console.demo.summary import failures
from stillhouse.console.demo.teacher import Teacher
from stillhouse.console.demo.trials import Trial, as_fields, trial_of
from stillhouse.schemas.facts import CanaryVerdict, StudentStage, StudentState
from stillhouse.sdk.config import Config
from stillhouse.trainer.settings import WindowSettings

NAME = "student-1-0123abcd"
ALPHA = {"alpha_before": 0.0, "alpha_after": 0.0}
TEACHER = Teacher(url="http://127.0.0.1:9/v1", model="m", priced_as="gpt-4o", notice="a teacher")


class Log:
    """Stands for `Watch`: one student's end, and its verdicts."""

    def __init__(self, stage: StudentStage | None, reason: str, *numbers: dict[str, object]) -> None:
        self._ended = StudentState(student=NAME, stage=stage, route="desk", reason=reason, decided_at=7) if stage else None
        self._verdicts = [
            CanaryVerdict(
                student=NAME, route="desk", verdict="hold", epoch=0, numbers=msgspec.json.encode(n).decode(), decided_at=i, **ALPHA
            )
            for i, n in enumerate(numbers)
        ]

    def ended(self, student: str) -> StudentState | None:
        return self._ended

    def of(self, student: str) -> list[CanaryVerdict]:
        return self._verdicts


def numbers(units: int, estimate: float | None = -0.2, width: float = 0.3) -> dict[str, object]:
    lower, upper = (None, None) if estimate is None else (estimate - width, estimate + width)
    rest = {"margin": 0.15, "canary": units, "control": 3 * units, "estimate": estimate, "lower": lower, "upper": upper}
    return {"reason": "few_units", "tests": [{"metric": name, "against": "teacher", **rest} for name in ("steps", "success")]}


@pytest.mark.parametrize(
    ("stage", "reason", "verdict"),
    [
        (StudentStage.ROLLED_BACK, "rollback: success_worse_than_teacher", "rollback"),
        (StudentStage.ROLLED_BACK, "expire: max_units", "expire"),
        (StudentStage.CHAMPION, "promote: non_inferior", "promote"),
        (None, "", "open"),
    ],
)
def test_a_trial_ends_as_the_log_says(stage: StudentStage | None, reason: str, verdict: str) -> None:
    trial = trial_of(Log(stage, reason, numbers(5, None), numbers(20)), NAME, "window 1")  # type: ignore[arg-type]
    assert trial.verdict == verdict and trial.crowned is (verdict == "promote")
    assert trial.units == {"canary": 20, "control": 60} and trial.margin == 0.15
    assert [point.units for point in trial.points] == [20]


def test_bounds_beyond_what_a_difference_can_be_are_cut() -> None:
    trial = trial_of(Log(None, "", numbers(5, -0.9, 0.4)), NAME, "noisy")  # type: ignore[arg-type]
    assert as_fields(trial, {"success": {}, "seconds_from_verdict_to_last_request": None})["interval"] == [-1.0, pytest.approx(-0.5)]


def test_a_canary_without_a_verdict_has_no_interval() -> None:
    trial = trial_of(Log(None, ""), NAME, "again")  # type: ignore[arg-type]
    assert as_fields(trial, {"success": {}, "seconds_from_verdict_to_last_request": None})["interval"] is None


def story(*trials: Trial, champion: str | None = NAME) -> Story:
    return Story(trials=list(trials), champion=champion)


def trial(what: str, verdict: str) -> Trial:
    return Trial(NAME, what, verdict, "why", None, {"canary": 1, "control": 1}, (), 0.15)


def test_a_demo_that_did_not_show_what_it_should_says_so() -> None:
    assert failures(FULL, story(champion=None)) == ["no student became champion"]
    assert failures(FULL, story(trial("noisy", "open"))) == ["the noisy student stayed: open"]
    assert failures(FULL, story(trial("noisy", "rollback"), trial("again", "rollback"))) == [
        "the champion was rolled back under another name: why"
    ]
    assert failures(FULL, story(trial("noisy", "rollback"), trial("again", "open"))) == []
    assert failures(FAST, story(champion=None)) == []


def test_noise_is_as_large_as_is_needed() -> None:
    assert LOW < bisected(lambda size: size / 10, 0.4) < HIGH
    assert bisected(lambda size: size / 10, 0.4) == pytest.approx(4.0, rel=NEAR)
    assert bisected(lambda size: 0.0, 0.4) == pytest.approx(HIGH, rel=0.05)  # nothing is enough
    tried: list[float] = []
    bisected(lambda size: tried.append(size) or size / 10, 0.4)  # type: ignore[func-returns-value]
    assert tried == [pytest.approx(4.0)]  # near enough the first time


@pytest.mark.parametrize("settings", [FULL, FAST])
def test_the_demos_settings_file_is_one_that_every_process_reads(settings: DemoSettings, tmp_path: Path) -> None:
    from stillhouse.sdk.routes import RouteSettings
    from stillhouse.serving.canary.settings import ControllerSettings
    from stillhouse.streams.signals.settings import SignalsSettings
    from stillhouse.trainer.settings import TrainerSettings

    path = tmp_path / "demo.toml"
    path.write_text(as_toml(settings, tmp_path / "base", 1, tmp_path / "tasks.jsonl", TEACHER))
    config = Config.load(path, state=tmp_path)
    window = config.section("window", WindowSettings)
    assert [step.min_kept for step in window.schedule] == [w.min_kept for w in settings.windows]
    assert window.lineage in config.sections("routes", RouteSettings)
    canary = config.section("canary", ControllerSettings)
    assert canary.stages == (0.25, 0.5) and canary.margin == 0.15
    config.section("trainer", TrainerSettings)
    config.section("signals", SignalsSettings)
