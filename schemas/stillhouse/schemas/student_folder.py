"""The folder of a student, for whoever makes it or serves it: what may be in it, whether it is whole, and its attestation probes.

Needs neither torch nor anything that could run code of the folder.
"""

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec

from stillhouse.schemas.errors import PermanentError

MANIFEST, RENDER, PROBES = "manifest.json", "render.json", "probes.json"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
NAME = re.compile(r"student-(\d+)-([0-9a-f]{8})")
_ALLOWED = (".json", ".safetensors")


class ChangedError(PermanentError):
    """A student's files are there, and are not those that were registered: no copy that is still under way, but another student."""


class StudentCard(msgspec.Struct, frozen=True, kw_only=True):
    """What a server needs of `manifest.json`.

    Args:
        name: the student's, and its folder's.
        parent: the student that it followed.
        base_model: name of the base model's folder.
        base_sha256: the base model's identity.
        files: sha256 (hex) of every other file of the folder, by its relative path.
    """

    name: str
    parent: str | None = None
    base_model: str = ""
    base_sha256: str = ""
    files: dict[str, str]


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence, and the log-probability of each of its tokens but the first under each model (parent: None without one)."""

    ids: tuple[int, ...]
    student: tuple[float, ...]
    base: tuple[float, ...]
    parent: tuple[float, ...] | None = None

    @property
    def separation(self) -> float:
        """How far the student is from the nearer of the other two: mean |Δ log-probability|, nats a token."""
        return min(distance(self.student, other) for other in (self.base, self.parent) if other is not None)


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Mean |Δ log-probability| of two scorings of one sequence, nats a token.

    Raises:
        PermanentError: they are not of the same sequence.
    """
    if len(one) != len(other) or not one:
        raise PermanentError(f"log-probabilities of {len(one)} and {len(other)} tokens cannot be compared", where=PROBES)
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


def load_probes(folder: Path) -> tuple[Probe, ...]:
    """The probes of a student's folder.

    Raises:
        PermanentError: there are none, or they cannot be read.
    """
    path = folder / PROBES
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[Probe, ...])
    except (OSError, msgspec.MsgspecError) as error:
        raise PermanentError(f"no readable probes: {error}", where=str(path)) from error


def sha256_of(path: Path) -> str:
    """The sha256 (hex) of a file's bytes."""
    with path.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def tree_hashes(folder: Path, *, leave_out: Collection[str] = ()) -> dict[str, str]:
    """The sha256 of every file below a folder, by its relative path; `leave_out` names paths to skip."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return {name: sha256_of(folder / name) for name in names if name not in leave_out}


def verify(folder: Path) -> StudentCard:
    """Compare a student's folder with its manifest.

    Raises:
        ChangedError: a file is new or changed, or the manifest is another's.
        PermanentError: a file is missing or a pickle, or the folder was renamed.
    """
    check_complete(folder)
    path = folder / MANIFEST
    try:
        card = msgspec.json.decode(path.read_bytes(), type=StudentCard)
    except (OSError, msgspec.MsgspecError) as error:
        raise PermanentError(f"no readable manifest: {error}", where=str(path)) from error
    if card.name != folder.name:
        raise PermanentError(f"the folder of {card.name} was renamed", where=str(folder))
    named = NAME.fullmatch(card.name)
    if named is None or named[2] != manifest_hash8(path.read_bytes()):
        raise ChangedError("the manifest is not the one that the student was registered with", where=str(path), fix="Do not serve it.")
    found = tree_hashes(folder, leave_out=(MANIFEST,))
    if found != card.files:
        changed = sorted({name for name, _ in set(found.items()) ^ set(card.files.items())})
        kind = ChangedError if found.keys() >= card.files.keys() else PermanentError
        raise kind(f"not as it was registered: {', '.join(changed)}", where=str(folder), fix="Do not serve it.")
    return card


def manifest_hash8(written: bytes) -> str:
    """The end of the name that a student with this manifest has: of the manifest's hash while it had no name."""
    unnamed = msgspec.json.encode(msgspec.json.decode(written, type=dict[str, Any]) | {"name": ""})
    return hashlib.sha256(unnamed).hexdigest()[:8]


def check_complete(folder: Path) -> None:
    """Whether the folder holds what a student needs, and nothing that may not be in one.

    Raises:
        PermanentError: it does not.
    """
    refuse_pickles(folder)
    missing = [n for n in (*ADAPTER, RENDER, PROBES) if not (folder / n).is_file()]
    if missing:
        raise PermanentError(f"not a student: {', '.join(missing)} missing", where=str(folder))


def refuse_pickles(folder: Path) -> None:
    """A student is JSON and safetensors. Anything else could run code when loaded.

    Raises:
        PermanentError: another kind of file is there, or one that is a pickle under a harmless name.
    """
    for path in sorted(p for p in folder.rglob("*") if not p.is_dir()):
        if path.is_symlink() or path.suffix not in _ALLOWED or not _is_what_it_says(path):
            raise PermanentError(
                f"{path.relative_to(folder)} may not be in a student's folder",
                where=str(folder),
                fix="Only .json and .safetensors files may: other formats can run code when they are loaded.",
            )


def _is_what_it_says(path: Path) -> bool:
    """Whether a .json file is JSON, and a .safetensors file begins with a header of its kind: a pickle is neither."""
    if path.suffix == ".json":
        try:
            json.loads(path.read_bytes())
        except ValueError:
            return False
        return True
    with path.open("rb") as data:
        length, brace = int.from_bytes(data.read(8), "little"), data.read(1)
    return brace == b"{" and 8 + length <= path.stat().st_size
