"""`manifest.json` of a student: where it comes from, how it was made, and the hash of every file beside it."""

import importlib.metadata
from pathlib import Path
from typing import Any

import msgspec

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.student_folder import MANIFEST

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "tokenizers", "safetensors")


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a student is made of.

    Attributes:
        name: `student-<n>-<hash8>`; empty until it is registered.
        parent: name of the student it followed or continued.
        lineage: the line of students that share base model, view, rank, alpha and targets.
        window: id of the window that it was trained on.
        dataset_sha256: hash of the curated window.
        offsets: first and last offset of the window's events by partition of `agent.events`.
        erasure_offset: position in the topic of erasures up to which erased rows were left out (-1: none yet).
        base_model: name of the base model's folder.
        base_sha256: the base model's identity.
        recipe: and `mode`, `settings`, `seed`: how it was trained.
        rows: training rows.
        tokens: tokens read in training.
        supervised_tokens: those that carried loss.
        train_loss: at the end, nats a supervised token.
        validation_loss: of the weights kept.
        parent_loss: the parent's on the same rows.
        base_loss: the base model's on them, where training started from it.
        evaluation: what the benchmark measured, as the evaluation wrote it.
        teachers: names of the policies that were distilled.
        versions: of the packages that made it.
        files: sha256 of every other file of the folder.
    """

    name: str = ""
    parent: str | None = None
    lineage: str = ""
    window: str = ""
    dataset_sha256: str = ""
    offsets: dict[int, tuple[int, int]] = {}
    erasure_offset: int = -1
    base_model: str
    base_sha256: str
    recipe: str
    mode: str
    settings: dict[str, Any]
    seed: int
    rows: int
    tokens: int
    supervised_tokens: int
    train_loss: float
    validation_loss: float | None = None
    parent_loss: float | None = None
    base_loss: float | None = None
    evaluation: dict[str, Any] = {}
    teachers: tuple[str, ...] = ()
    versions: dict[str, str] = {}
    files: dict[str, str] = {}


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a student's folder.

    Raises:
        PermanentError: there is none, or it cannot be read.
    """
    path = folder / MANIFEST
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError) as error:
        raise PermanentError(f"no readable manifest: {error}", where=str(path)) from error


def versions() -> dict[str, str]:
    """Versions of Stillhouse and of the packages that shape a student."""
    return {name: importlib.metadata.version(name) for name in ("stillhouse", *_PACKAGES)}
