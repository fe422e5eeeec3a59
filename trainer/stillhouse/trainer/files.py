"""Hashes, durable folders, and locks that go with the process."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stillhouse.schemas.student_folder import sha256_of, tree_hashes

__all__ = ["alone", "sha256_of", "sync_folder", "tree_hashes"]


def sync_folder(folder: Path) -> None:
    """Flush a folder's files and entries to disk, so that a rename of it cannot outlive its content."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def alone(path: Path, refusal: Exception) -> Iterator[None]:
    """Hold a lock file while the block runs; the lock goes with the process.

    Raises:
        Exception: `refusal`, when another process holds it.
    """
    with path.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise refusal from error
        yield
