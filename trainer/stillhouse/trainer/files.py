"""Hashes and durable folders."""

import os
from pathlib import Path

from stillhouse.schemas.student_folder import sha256_of, tree_hashes

__all__ = ["sha256_of", "sync_folder", "tree_hashes"]


def sync_folder(folder: Path) -> None:
    """Flush a folder's files and entries to disk, so that a rename of it cannot outlive its content."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
