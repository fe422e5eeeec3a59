"""The registry of students: folders that appear whole, are never changed, and whose names are never used again."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from stillhouse.schemas import student_folder
from stillhouse.schemas.render import RenderSpec
from stillhouse.schemas.student_folder import MANIFEST, NAME, RENDER, Probe, check_complete, load_probes, manifest_hash8
from stillhouse.trainer.files import sha256_of, sync_folder, tree_hashes
from stillhouse.trainer.manifest import Manifest, load_manifest

_NAMES = "names.txt"  # every name ever given, one a line: deleting a folder does not free its name


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
    check_complete(candidate)
    students.mkdir(parents=True, exist_ok=True)
    with _alone(students):
        for left in students.glob(".partial-*"):
            shutil.rmtree(left)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=students))
        shutil.copytree(candidate, partial, dirs_exist_ok=True)
        files = tree_hashes(partial, leave_out=(MANIFEST,))
        unnamed = msgspec.structs.replace(manifest, files=files, name="")
        name = f"student-{_next_number(students)}-{manifest_hash8(msgspec.json.encode(unnamed))}"
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
    student_folder.verify(folder)
    return load_manifest(folder)


def manifest_sha256(folder: Path) -> str:
    """The hash that `StudentState` carries: of the manifest, and so of every file it lists."""
    return sha256_of(folder / MANIFEST)


def _number(name: str) -> int:
    found = NAME.fullmatch(name)
    return int(found[1]) if found else 0


def _folders(students: Path) -> list[str]:
    return [p.name for p in students.iterdir() if NAME.fullmatch(p.name)] if students.is_dir() else []


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
