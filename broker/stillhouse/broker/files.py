"""Small durable-file helpers: write everything or raise, replace atomically, make directory entries last."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any


def sync_directory(folder: Path) -> None:
    """Make created, renamed and removed entries of `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_at(descriptor: int, data: bytes | bytearray | memoryview, position: int) -> None:
    """Write all of `data` at `position`. Raises OSError (full disk, size limit) with the file's end possibly half written."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, position)
        position += written
        view = view[written:]


def replace(path: Path, data: bytes) -> None:
    """Make `path` hold `data`, durably: after a crash it holds the old bytes or the new ones. Raises OSError."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            write_at(descriptor, data, 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.rename(path)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def replace_json(path: Path, value: Any) -> None:
    """`replace` with JSON."""
    replace(path, json.dumps(value, separators=(",", ":")).encode())


def read_json(path: Path) -> Any:
    """The JSON in `path`, or None where there is no such file. Raises ValueError, naming the file, for a damaged one."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error})") from error
