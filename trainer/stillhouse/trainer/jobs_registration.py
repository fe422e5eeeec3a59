"""From an evaluated candidate to a registered student: the gates on what was measured, the manifest, and the topic."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from stillhouse.schemas.errors import GateError, PermanentError
from stillhouse.schemas.facts import StudentStage, StudentState
from stillhouse.schemas.student_folder import check_complete
from stillhouse.trainer import students
from stillhouse.trainer.evaluation.gate import FamilyGate
from stillhouse.trainer.examples import Example
from stillhouse.trainer.gates import format_gate, loss_gate
from stillhouse.trainer.manifest import Manifest, versions
from stillhouse.trainer.models import check
from stillhouse.trainer.settings import TrainerSettings
from stillhouse.trainer.training_job import TrainResult
from stillhouse.trainer.windows_types import Window


def check_measured(window: Window, settings: TrainerSettings) -> None:
    """The format gate, the loss gates and the family gate.

    Raises:
        GateError: one of them said no.
    """
    assert window.trained is not None and window.evaluated is not None
    trained, evaluated = window.trained, window.evaluated
    verdicts = []
    if evaluated.format_errors is not None:
        verdicts.append(format_gate(evaluated.format_errors, evaluated.parent_format_errors, slack=settings.format_slack))
    verdicts.append(
        loss_gate(
            trained.validation_loss,
            trained.parent_loss,
            trained.train_loss or 0.0,
            success=evaluated.success,
            parent_success=evaluated.parent_success,
            slack=settings.loss_slack,
            gap=settings.loss_gap,
        )
    )
    for verdict in verdicts:
        if not verdict.passed:
            raise GateError(verdict.reason)
    if families := evaluated.report.get("family_gate"):
        msgspec.convert(families, FamilyGate).require()


def check_candidate(candidate: Path) -> None:
    """The candidate's files are those of a student.

    Raises:
        GateError: one may hold code, or is missing.
    """
    try:
        check_complete(candidate)
    except PermanentError as error:
        raise GateError(error.what, where=error.where, fix=error.fix) from error


def registered(folder: Path, window: Window) -> Path | None:
    """The student of a registration that was killed before the window's state moved on.

    Windows are counted by their store: where a store was made anew, an older student bears the same window's name. It has other data.
    """
    assert window.curated is not None
    made_of = (window.key, window.curated.manifest_hash)
    names = [m.name for m in students.list_students(folder) if (m.window, m.dataset_sha256) == made_of]
    return folder / names[-1] if names else None


def manifest_of(window: Window, train: Sequence[Example], base_model: Path, settings: TrainerSettings, erasure_offset: int) -> Manifest:
    """All that a student's folder says of where it comes from.

    Args:
        window: an evaluated one.
        train: its training examples.
        base_model: folder of the base model.
        settings: `[trainer]`.
        erasure_offset: of the last erasure that its rows were checked against.
    """
    assert window.curated is not None and window.trained is not None and window.evaluated is not None
    result = msgspec.convert(window.trained.result, TrainResult, strict=False, dec_hook=lambda kind, value: kind(value))
    return Manifest(
        parent=window.plan.parent,
        lineage=window.plan.lineage,
        window=window.key,
        dataset_sha256=window.curated.manifest_hash,
        offsets=window.plan.offsets,
        erasure_offset=erasure_offset,
        base_model=base_model.name,
        base_sha256=check(base_model),
        recipe=settings.recipe,
        mode=window.plan.mode,
        settings=msgspec.to_builtins(settings.training()),
        seed=settings.seed,
        rows=result.rows,
        tokens=result.tokens,
        supervised_tokens=result.supervised_tokens,
        train_loss=result.train_loss,
        validation_loss=result.validation_loss,
        base_loss=result.base_loss,
        parent_loss=result.parent_loss,
        evaluation=msgspec.to_builtins(window.evaluated),
        teachers=tuple(sorted({e.source for e in train})),
        versions=result.versions or versions(),
    )


def announcement(folder: Path, window: Window, now: int) -> StudentState:
    """What the topic `students` is told of a registered student. `now` is in microseconds."""
    return StudentState(
        student=folder.name,
        stage=StudentStage.REGISTERED,
        route=window.plan.lineage,
        window=window.key,
        manifest_sha256=students.manifest_sha256(folder),
        decided_by="trainer",
        decided_at=now,
    )
