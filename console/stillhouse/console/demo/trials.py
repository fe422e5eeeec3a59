"""One student's canary as the demo sees it: traffic until there is a verdict, and what the log says of it afterwards."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from stillhouse.console.demo.watch import Watch
from stillhouse.schemas.events import PolicyRole
from stillhouse.schemas.facts import CanaryVerdict, StudentStage, StudentState
from stillhouse.sdk.store import Store

Fields = dict[str, Any]
OPEN = "open"
_CANARY, _CONTROL = "canary", ("teacher", "champion", "holdback")


@dataclass(frozen=True)
class Point:
    """The interval at one recorded look: the success test against `against`, points of success."""

    units: int
    estimate: float
    lower: float
    upper: float
    against: str


@dataclass(frozen=True)
class Trial:
    """A canary that is over, or that was left open.

    Args:
        student: its name.
        what: what it is: a student of a window, the noisy one, the champion again.
        verdict: `promote`, `rollback`, `expire`, or `open`.
        reason: why.
        units: matured units of canary and control in the last verdict.
        points: the interval over time.
        margin: of the success test.
    """

    student: str
    what: str
    verdict: str
    reason: str
    decided_at: int | None
    units: Mapping[str, int]
    points: tuple[Point, ...]
    margin: float

    @property
    def crowned(self) -> bool:
        """Whether it became champion."""
        return self.verdict == "promote"


def trial_of(watch: Watch, student: str, what: str) -> Trial:
    """What the log says of a student's canary."""
    ended, verdicts = watch.ended(student), watch.of(student)
    numbers = msgspec.json.decode(verdicts[-1].numbers) if verdicts else {}
    tests = _success(numbers)
    return Trial(
        student=student,
        what=what,
        verdict=_verdict(ended, verdicts),
        reason=ended.reason if ended else str(numbers.get("reason", "")),
        decided_at=ended.decided_at if ended else None,
        units={"canary": tests[0]["canary"], "control": tests[0]["control"]} if tests else {"canary": 0, "control": 0},
        points=tuple(point for verdict in verdicts if (point := _point(msgspec.json.decode(verdict.numbers))) is not None),
        margin=tests[0]["margin"] if tests else 0.0,
    )


def _verdict(ended: StudentState | None, verdicts: list[CanaryVerdict]) -> str:
    if ended is None:
        return OPEN
    if ended.stage is StudentStage.CHAMPION:
        return "promote"
    return "expire" if ended.reason.startswith("expire") else "rollback"


def _success(numbers: Mapping[str, Any]) -> list[Fields]:
    """The tests on success, the hardest reference first: the champion where there is one."""
    return [test for test in numbers.get("tests", ()) if test["metric"] == "success"]


def _point(numbers: Mapping[str, Any]) -> Point | None:
    tests = _success(numbers)
    if not tests or tests[0]["estimate"] is None:
        return None
    test = tests[0]
    # With few units the bounds lie beyond what a difference of two shares can be.
    lower, upper = max(-1.0, test["lower"]), min(1.0, test["upper"])
    return Point(test["canary"], test["estimate"], lower, upper, test["against"])


def served(store: Store, trials: Sequence[Trial]) -> dict[str, Fields]:
    """What the store says of trials, by student: successes by arm, and the seconds from the verdict to the student's last answer.

    Intention to treat: a run counts in the arm that it was assigned to, whoever answered.
    """
    rows = store.trajectories(columns=["key", "assignment", "outcome", "status"])
    return {trial.student: _served(store, trial, rows) for trial in trials}


def _served(store: Store, trial: Trial, rows: Sequence[Fields]) -> Fields:
    arms = {_CANARY: {"k": 0, "n": 0}, "control": {"k": 0, "n": 0}}
    keys = []
    for row in rows:
        assigned = row["assignment"] or {}
        if f"/{trial.student}/" not in str(assigned.get("experiment", "")):
            continue
        arm = _CANARY if assigned["arm"] == _CANARY else "control" if assigned["arm"] in _CONTROL else None
        if arm == _CANARY:
            keys.append(row["key"])
        if arm is not None and row["status"] == "ended":
            arms[arm]["n"] += 1
            arms[arm]["k"] += row["outcome"] == "success"
    last = max((at for trajectory in store.load(keys).values() for at in _answers(trajectory, trial.student)), default=None)
    late = (last - trial.decided_at) / 1e6 if last is not None and trial.decided_at is not None and not trial.crowned else None
    return {"success": arms, "seconds_from_verdict_to_last_request": None if late is None else round(max(0.0, late), 3)}


def _answers(trajectory: Any, student: str) -> list[int]:
    """When the student answered in a run."""
    steps = [step for step in trajectory.steps if step.policy.role is PolicyRole.STUDENT and step.policy.model == student]
    return [step.occurred_at for step in steps]


def as_fields(trial: Trial, found: Fields) -> Fields:
    """A trial in the form of `summary.json`."""
    last = trial.points[-1] if trial.points else None
    return {
        "student": trial.student,
        "what": trial.what,
        "verdict": trial.verdict,
        "reason": trial.reason,
        "units": dict(trial.units),
        "success": found["success"],
        "interval": [last.lower, last.upper] if last else None,
        "margin": trial.margin,
        "seconds_from_verdict_to_last_request": found["seconds_from_verdict_to_last_request"],
        "over_time": [asdict(point) for point in trial.points],
    }
