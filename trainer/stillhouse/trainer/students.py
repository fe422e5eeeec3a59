"""The registry of students: folders that appear whole, are never changed, and whose names are never used again."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.render import RenderSpec
from stillhouse.trainer.files import sha256_of, sync_folder, tree_hashes
from stillhouse.trainer.manifest import MANIFEST, Manifest, load_manifest
from stillhouse.trainer.probes import PROBES, Probe, load_probes

RENDER = "render.json"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_ALLOWED = (".json", ".safetensors")
_NAMES = "names.txt"  # every name ever given, one a line: deleting a folder does not free its name
_NAME = re.compile(r"student-(\d+)-[0-9a-f]{8}")


class Student(msgspec.Struct, frozen=True, kw_only=True):
    """A registered student, read and verified."""

    folder: Path
    manifest: Manifest
    render: RenderSpec
    probes: tuple[Probe, ...]


def register(students: Path, candidate: Path, manifest: Manifest) -> Path:
    """Make a candidate a student.

    The folder is written beside its place, flushed, and renamed: a killed registration leaves nothing under a student's name.

    Args:
        students: the folder of all students.
        candidate: the adapter with `render.json` and `probes.json`, as training leaves it.
        manifest: what is known about it; name and files are filled in here.

    Returns:
        the student's folder; its name is the student's.

    Raises:
        PermanentError: a file is missing, or may not be in a student.
    """
    _check_complete(candidate)
    students.mkdir(parents=True, exist_ok=True)
    with _alone(students):
        for left in students.glob(".partial-*"):
            shutil.rmtree(left)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=students))
        shutil.copytree(candidate, partial, dirs_exist_ok=True)
        files = tree_hashes(partial, leave_out=(MANIFEST,))
        unnamed = msgspec.structs.replace(manifest, files=files, name="")
        digest = hashlib.sha256(msgspec.json.encode(unnamed)).hexdigest()[:8]
        name = f"student-{_next_number(students)}-{digest}"
        written = msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(unnamed, name=name)), indent=2)
        (partial / MANIFEST).write_bytes(written)
        partial.chmod(0o755)
        sync_folder(partial)
        _take_name(students, name)
        partial.rename(students / name)
        _sync(students)
    return students / name


def list_students(students: Path) -> tuple[Manifest, ...]:
    """The manifests of all registered students, oldest first.

    Raises:
        PermanentError: a student's manifest cannot be read.
    """
    return tuple(load_manifest(students / name) for name in sorted(_folders(students), key=_number))


def load(folder: Path) -> Student:
    """A student with everything that belongs to it, verified.

    Raises:
        PermanentError: see `verify`.
    """
    return Student(folder=folder, manifest=verify(folder), render=RenderSpec.load(folder / RENDER), probes=load_probes(folder))


def verify(folder: Path) -> Manifest:
    """Compare a student's folder with its manifest.

    Returns:
        the manifest.

    Raises:
        PermanentError: a file is missing, new, changed or a pickle, or the folder was renamed.
    """
    _check_complete(folder)
    manifest = load_manifest(folder)
    if manifest.name != folder.name:
        raise PermanentError(f"the folder of {manifest.name} was renamed", where=str(folder))
    found = tree_hashes(folder, leave_out=(MANIFEST,))
    if found != manifest.files:
        changed = sorted({name for name, _ in set(found.items()) ^ set(manifest.files.items())})
        raise PermanentError(f"not as it was registered: {', '.join(changed)}", where=str(folder), fix="Do not serve it.")
    return manifest


def manifest_sha256(folder: Path) -> str:
    """The hash that `StudentState` carries: of the manifest, and so of every file it lists."""
    return sha256_of(folder / MANIFEST)


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


def _check_complete(folder: Path) -> None:
    refuse_pickles(folder)
    missing: Sequence[str] = [n for n in (*ADAPTER, RENDER, PROBES) if not (folder / n).is_file()]
    if missing:
        raise PermanentError(f"not a student: {', '.join(missing)} missing", where=str(folder))


def _number(name: str) -> int:
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else 0


def _folders(students: Path) -> list[str]:
    return [p.name for p in students.iterdir() if _NAME.fullmatch(p.name)] if students.is_dir() else []


def _next_number(students: Path) -> int:
    names = students / _NAMES
    given = names.read_text().split() if names.exists() else []
    return 1 + max(map(_number, [*given, *_folders(students)]), default=0)


def _take_name(students: Path, name: str) -> None:
    with (students / _NAMES).open("a") as names:
        names.write(f"{name}\n")
        names.flush()
        os.fsync(names.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _alone(students: Path) -> Iterator[None]:
    with (students / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
