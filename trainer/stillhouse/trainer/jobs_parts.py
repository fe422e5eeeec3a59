"""What a job is made of and what it gives: the parts that are injected, the result, and small functions of both."""

from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from stillhouse.schemas.facts import StudentState
from stillhouse.schemas.render import coverage_hash
from stillhouse.trainer.curate.compress import ActionLoss
from stillhouse.trainer.curate.prune import Replay
from stillhouse.trainer.decisions import ReadErasures
from stillhouse.trainer.examples import Example
from stillhouse.trainer.training_job import Progress as TrainProgress
from stillhouse.trainer.training_job import TrainJob, TrainResult
from stillhouse.trainer.windows_types import EvaluatedFacts, State, Window

Progress = Callable[[dict[str, Any]], None]
"""Told what happens, as JSON objects with an `event`: `state`, `stage`, `train`."""

Train = Callable[[TrainJob, Sequence[Example], Sequence[Example], TrainProgress], TrainResult]


MakeActionLoss = Callable[[Path], ActionLoss]


class Evaluate(Protocol):
    """Runs a candidate, and the parent it must not fall behind, on validation tasks."""

    def __call__(self, candidate: Path, parent: Path | None, progress: Progress, /) -> EvaluatedFacts:
        """Measure; called again after a crash."""
        ...


class MakeShadow(Protocol):
    """Asks a registered student at the teacher's stored steps, before anybody is told of it."""

    def __call__(self, folder: Path, progress: Progress, /) -> None:
        """Make the report; called again after a crash."""
        ...


class Steps(msgspec.Struct, frozen=True, kw_only=True):
    """What a job is made of; tests put in their own.

    Attributes:
        train: trains; called again after a crash with the same arguments.
        check: called before a window is claimed, with the job that it will train: raises what training would refuse at once.
        evaluate: measures in an environment; None where there is none.
        shadow: makes the new student's shadow; None: there is no route that it could be tried on, or nobody wants one.
        publish: tells the topic `students`; after a crash it may be told the same again.
        erasures: who is to be forgotten, as of now; None where nobody can say.
        barred: the students that were taken out of their lineage, as of now; None where nobody can say.
        replay: runs pruned trajectories in their environment.
        action_loss: given a parent's folder, measures compression under it; None: compression is not measured.
    """

    train: Train
    check: Callable[[TrainJob], None] | None = None
    evaluate: Evaluate | None = None
    shadow: MakeShadow | None = None
    publish: Callable[[StudentState], None] | None = None
    erasures: ReadErasures | None = None
    barred: Callable[[], Container[str]] | None = None
    replay: Replay | None = None
    action_loss: MakeActionLoss | None = None


class JobResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a window ended: `student` is the registered one's name, or empty with the reason it was rejected for."""

    window: str
    state: State
    student: str = ""
    reason: str = ""
    mode: str = ""
    waterfall: dict[str, Any] = {}
    validation_loss: float | None = None
    parent_loss: float | None = None
    base_loss: float | None = None
    evaluation: dict[str, Any] = {}


def coverage(examples: Sequence[Example]) -> tuple[str, ...]:
    """The hashes of all (system prompt, tools) that examples were recorded under."""
    seen = set()
    for example in examples:
        first = example.bare[0] if example.messages else None
        seen.add(coverage_hash(first.text if first is not None and first.role == "system" else None, example.tools))
    return tuple(sorted(seen))


def tokens_by_key(examples: Sequence[Example]) -> dict[str, int]:
    """Supervised tokens of each trajectory."""
    found: dict[str, int] = {}
    for example in examples:
        found[example.key] = found.get(example.key, 0) + example.tokens
    return found


def result_of(window: Window) -> JobResult:
    """How a window that has ended did."""
    return JobResult(
        window=window.key,
        state=window.state,
        student=window.student,
        reason=window.reason,
        mode=window.plan.mode,
        waterfall=window.curated.waterfall.to_json() if window.curated else {},
        validation_loss=window.trained.validation_loss if window.trained else None,
        parent_loss=window.trained.parent_loss if window.trained else None,
        base_loss=window.trained.base_loss if window.trained else None,
        evaluation=msgspec.to_builtins(window.evaluated) if window.evaluated else {},
    )
