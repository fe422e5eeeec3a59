"""A student's folder as the gateway serves it: verified, its view of a conversation, its probes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.render import Renderer, RenderSpec
from stillhouse.schemas.student_folder import RENDER, Probe, StudentCard, load_probes, sha256_of, verify

MODEL = "model.json"


@dataclass(frozen=True)
class Student:
    """A student whose files are what its manifest says."""

    folder: Path
    card: StudentCard
    renderer: Renderer
    probes: tuple[Probe, ...]

    @property
    def spec(self) -> RenderSpec:
        """How it sees a conversation."""
        return self.renderer.spec


def read_student(students: Path, name: str, tokenizers: Sequence[Path]) -> Student:
    """Read and verify a student.

    Args:
        students: the folder of all students.
        name: the student's, and its folder's.
        tokenizers: folders of base models that may be the student's; the first that fits is taken.

    Raises:
        PermanentError: it lies elsewhere, is not what was registered, has no probes, or no base model's tokenizer fits it.
    """
    folder = _inside(students, name)
    card = verify(folder)
    spec, probes = RenderSpec.load(folder / RENDER), load_probes(folder)
    if not probes:
        raise PermanentError("a student without probes cannot be told from others", where=str(folder))
    return Student(folder, card, Renderer(spec, _tokenizer(card, spec, tokenizers)), probes)


def model_folders(base_model: str) -> tuple[Path, ...]:
    """Where a base model is kept on this machine, by its folder's name: `STILLHOUSE_MODELS`, else the user's cache."""
    cache = Path(os.environ.get("STILLHOUSE_MODELS") or Path.home() / ".cache" / "stillhouse" / "models")
    return (cache / base_model,) if base_model and Path(base_model).name == base_model else ()


def _inside(students: Path, name: str) -> Path:
    root = students.resolve()
    folder = root / name
    if Path(name).name != name or name in ("", ".", "..") or folder.resolve() != folder:
        raise PermanentError(f"{name!r} does not lie in the folder of students", where=str(students), fix="Serve registered students only.")
    if not folder.is_dir():
        raise PermanentError(f"there is no student {name}", where=str(students), fix="stillhouse students list")
    return folder


def _tokenizer(card: StudentCard, spec: RenderSpec, tokenizers: Sequence[Path]) -> Path:
    """The folder of the base model that the student was trained on: by the model's identity where it has one, else by its tokens."""
    folders = [f for f in (*model_folders(card.base_model), *tokenizers) if (f / "tokenizer.json").is_file()]
    if not folders:
        fix = "Fetch it (stillhouse models fetch), or set STILLHOUSE_MODELS to the folder that it lies in."
        raise PermanentError(f"the base model {card.base_model} is not here: its tokenizer is needed", where=card.name, fix=fix)
    for folder in folders:
        identity = folder / MODEL
        if card.base_sha256 and identity.is_file():
            if sha256_of(identity) == card.base_sha256:
                return folder
            continue
        own = spec.for_model(folder)
        if (own.stop_ids, own.pad_id) == (spec.stop_ids, spec.pad_id):
            return folder
    raise PermanentError(f"not the base model that {card.name} was trained on", where=", ".join(map(str, folders)))
