"""What must hold before a student is trained. Each failure says which row, file or setting it is about."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import msgspec

from stillhouse.schemas.errors import GateError, PermanentError, UsageError
from stillhouse.schemas.render import RenderSpec
from stillhouse.schemas.student_folder import ADAPTER, MANIFEST, RENDER, refuse_pickles
from stillhouse.trainer.collate import Row
from stillhouse.trainer.examples import Example
from stillhouse.trainer.gates import data_gate
from stillhouse.trainer.manifest import load_manifest
from stillhouse.trainer.models import model_id
from stillhouse.trainer.training_job import TrainJob

_BRING_BACK = "Bring the folder back from a backup, or start a new lineage with [window] lineage."


def check_examples(train: Sequence[Example], validation: Sequence[Example]) -> None:
    """The data gate.

    Raises:
        GateError: it said no.
    """
    verdict = data_gate(train, validation)
    if not verdict.passed:
        raise GateError(verdict.reason, where="data gate")
    for example in (*train, *validation):
        if not any(example.mask):
            raise GateError(f"zero supervised tokens: {example.key} has no action to learn", where="data gate")


def check_rows(rows: Sequence[Row], spec: RenderSpec, *, taken: int | None = None) -> None:
    """Every row teaches something and fits.

    Args:
        rows: what the recipe made.
        spec: the view, for its context limit.
        taken: how many rows the trainer holds, once it has them.

    Raises:
        PermanentError: a row has no supervised token or is too long, or the trainer lost rows.
    """
    for place, row in enumerate(rows):
        if not row.supervised:
            raise PermanentError("zero supervised tokens", where=f"row {place}")
        if len(row.ids) > spec.context_limit:
            raise PermanentError(
                f"{len(row.ids)} tokens, the limit is {spec.context_limit}", where=f"row {place}", fix="Curation must cut or drop it."
            )
    if taken is not None and taken != len(rows):
        raise PermanentError(f"{len(rows)} rows went in, the trainer has {taken}", where="training set")


def check_lineage(job: TrainJob) -> None:
    """A parent is safe to load and of the job's lineage: the adapter's shape, the view and the base model are the same.

    Raises:
        UsageError: the mode needs a parent, or one of them differs.
        PermanentError: the parent's folder is gone, a file in it may hold code, or one cannot be read.
    """
    if job.parent is None:
        if job.mode == "continue":
            raise UsageError("a student cannot be continued without a parent", fix="Use the mode `fresh`.")
        return
    if not job.parent.is_dir():
        raise PermanentError(f"the parent's folder is gone: {job.parent.name}", where=str(job.parent), fix=_BRING_BACK)
    refuse_pickles(job.parent)
    wanted = (job.settings.rank, job.settings.alpha, sorted(job.settings.targets))
    _same(job.parent, "rank, alpha and targets", _shape(job.parent / ADAPTER[0]), wanted)
    seen = msgspec.structs.asdict(RenderSpec.load(job.parent / RENDER))
    sees = msgspec.structs.asdict(job.render)
    for name in seen.keys() - {"distilled_on"}:
        _same(job.parent, f"view ({name})", seen[name], sees[name])
    if (job.parent / MANIFEST).is_file():  # a candidate that was never registered has none
        _same(job.parent, "base model (sha256)", load_manifest(job.parent).base_sha256, model_id(job.base_model))


def _shape(config: Path) -> tuple[int, int, list[str]]:
    """Rank, alpha and targets of an adapter."""
    try:
        had = json.loads(config.read_bytes())
        return had["r"], had["lora_alpha"], sorted(had["target_modules"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PermanentError(f"the parent's adapter cannot be read: {error!r}", where=str(config), fix=_BRING_BACK) from error


def _same(parent: Path, what: str, had: object, wanted: object) -> None:
    if had != wanted:
        raise UsageError(
            f"the parent's {what}: {had}, the job's: {wanted}; they are fixed within a lineage",
            where=str(parent), fix="Set [trainer] as it was, or start a new lineage with [window] lineage.",
        )  # fmt: skip


def sample(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """At most `count` rows, the same for the same seed."""
    return list(rows) if len(rows) <= count else random.Random(seed).sample(list(rows), count)
