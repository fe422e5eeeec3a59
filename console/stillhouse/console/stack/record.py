"""`run/stack.json`: where everything of a running stack is. Written whole or not at all."""

import os
from pathlib import Path

import msgspec

from stillhouse.console.stack.process import same_process
from stillhouse.schemas.errors import PermanentError, UnreachableError


class ProcessId(msgspec.Struct, frozen=True, kw_only=True):
    """A process id with its start time (seconds since the epoch), so that a reused id is never mistaken for ours."""

    pid: int
    started: float

    @property
    def alive(self) -> bool:
        """Whether that very process still runs."""
        return same_process(self.pid, self.started) is not None


class StackRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Addresses and processes of a running stack."""

    bootstrap_servers: str
    supervisor: ProcessId
    pids: dict[str, ProcessId]
    metrics: dict[str, str] = {}
    gateway: str | None = None
    admin: str | None = None
    student: str | None = None
    page: str | None = None
    model: str | None = None
    restarts: dict[str, int] = {}


def path_of(state: Path) -> Path:
    """Where the record of a state folder's stack lies."""
    return state / "run" / "stack.json"


def write(state: Path, record: StackRecord) -> None:
    """Replace the record atomically."""
    path = path_of(state)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    with draft.open("wb") as out:
        out.write(msgspec.json.format(msgspec.json.encode(record)) + b"\n")
        out.flush()
        os.fsync(out.fileno())
    draft.replace(path)


def read(state: Path) -> StackRecord | None:
    """The record, or None where no stack was started (or it was stopped in order).

    Raises:
        PermanentError: the file is not a record.
    """
    try:
        return msgspec.json.decode(path_of(state).read_bytes(), type=StackRecord)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise PermanentError(f"not a stack's record: {error}", where=str(path_of(state)), fix="Delete it if nothing runs.") from error


def running(state: Path) -> StackRecord:
    """The record of the stack that runs now.

    Raises:
        UnreachableError: none runs.
    """
    record = read(state)
    if record is None or not record.supervisor.alive:
        raise UnreachableError("no stack runs here", where=str(state), fix="Start it with: stillhouse up --detach")
    return record


def remove(state: Path) -> None:
    """Forget the record after an orderly stop."""
    path_of(state).unlink(missing_ok=True)
