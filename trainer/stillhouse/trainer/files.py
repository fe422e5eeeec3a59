"""Hashes and durable folders."""

import hashlib
import os
from collections.abc import Collection
from pathlib import Path


def sha256_of(path: Path) -> str:
    """The sha256 (hex) of a file's bytes."""
    with path.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def tree_hashes(folder: Path, *, leave_out: Collection[str] = ()) -> dict[str, str]:
    """The sha256 of every file below a folder, by its relative path; `leave_out` names paths to skip."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return {name: sha256_of(folder / name) for name in names if name not in leave_out}


def sync_folder(folder: Path) -> None:
    """Flush a folder's files and entries to disk, so that a rename of it cannot outlive its content."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
