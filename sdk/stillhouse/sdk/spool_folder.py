"""One process's spool on disk: a SQLite file under a lock that dies with the process.

`<spool>/<name>/lock` is held (flock) for as long as a process uses the folder. A folder whose lock nobody holds is an orphan: its
process ended, and whoever takes the lock sends what is in it.
"""

import fcntl
import os
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import msgspec

from stillhouse.schemas.errors import PermanentError

_OURS = "process-"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS parcels (
  number INTEGER PRIMARY KEY, topic TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, headers BLOB NOT NULL, size INTEGER NOT NULL
)"""
_DELETE = "DELETE FROM parcels WHERE number = ? RETURNING size"
_OVERHEAD = 64  # what a row takes beside its columns, about

Headers = list[tuple[str, bytes]]
_headers = msgspec.msgpack.Decoder(Headers).decode


class Parcel(NamedTuple):
    """A record ready to be sent: redacted and encoded. `size` counts key, value and headers in bytes."""

    topic: str
    key: bytes
    value: bytes
    headers: Headers
    size: int

    @property
    def stored(self) -> int:
        """What it counts against the spool's bound."""
        return self.size + _OVERHEAD


def parcel(topic: str, key: bytes, value: bytes, headers: Headers) -> Parcel:
    """A parcel with its size."""
    size = len(key) + len(value)
    for name, header in headers:
        size += len(name) + len(header)
    return Parcel(topic, key, value, headers, size)


class SpoolFolder:
    """A spool folder whose lock this process holds. For one thread.

    Args:
        path: the folder.
        lock: the descriptor that holds the lock.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path, self._lock = path, lock
        self._db: sqlite3.Connection | None = None
        self._last = 0  # the highest number ever given
        self.rows = self.bytes = 0

    def open(self) -> None:
        """Open the file and count what is in it.

        Raises:
            sqlite3.Error: it cannot be opened or is none of ours; the disk may be full.
        """
        db = sqlite3.connect(self.path / "parcels.db", check_same_thread=False, isolation_level=None)
        try:
            # FULL: one fsync a transaction, and there are at most a few a second: power loss takes no more than a kill.
            for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", _SCHEMA):
                db.execute(statement)
            count = "SELECT count(*), coalesce(sum(size), 0), coalesce(max(number), 0) FROM parcels"
            self.rows, held, self._last = db.execute(count).fetchone()
            self.bytes = held + self.rows * _OVERHEAD
        except sqlite3.Error:
            db.close()
            raise
        self._db = db

    def change(self, insert: Sequence[Parcel] = (), delete: Sequence[int] = ()) -> list[int]:
        """Insert and delete in one transaction; gives the numbers of the inserted.

        Raises:
            sqlite3.Error: nothing was changed; the disk may be full.
        """
        if self._db is None:
            self.open()
        assert self._db is not None
        numbers = list(range(self._last + 1, self._last + 1 + len(insert)))
        rows = [(number, *p[:3], msgspec.msgpack.encode(p.headers), p.size) for number, p in zip(numbers, insert, strict=True)]
        self._db.execute("BEGIN IMMEDIATE")
        try:
            gone = [row[0] for number in delete for row in self._db.execute(_DELETE, (number,))]
            self._db.executemany("INSERT INTO parcels VALUES (?, ?, ?, ?, ?, ?)", rows)
            self._db.execute("COMMIT")
        except sqlite3.Error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._last += len(rows)
        self.rows += len(rows) - len(gone)
        self.bytes += sum(p.stored for p in insert) - sum(gone) - len(gone) * _OVERHEAD
        return numbers

    def read(self, after: int, limit: int) -> Iterator[tuple[int, Parcel]]:
        """Up to `limit` parcels with numbers above `after`, in order.

        Raises:
            sqlite3.Error: the file cannot be read.
        """
        if self._db is None:
            return
        sql = "SELECT number, topic, key, value, headers, size FROM parcels WHERE number > ? ORDER BY number LIMIT ?"
        for number, topic, key, value, headers, size in self._db.execute(sql, (after, limit)).fetchall():
            yield number, Parcel(topic, key, value, _headers(headers), size)

    def close(self, *, remove: bool) -> None:
        """Give the folder back: to nobody when it is empty and `remove` is set, else to the next start."""
        if self._db is not None:
            self._db.close()
            self._db = None
        if remove:
            for name in ("parcels.db", "parcels.db-wal", "parcels.db-shm", "lock"):
                (self.path / name).unlink(missing_ok=True)
            self.path.rmdir()
        os.close(self._lock)

    def forget(self) -> None:
        """In a forked child: let go of the parent's lock without releasing it, and never touch its file."""
        os.close(self._lock)


def create(spool: Path) -> SpoolFolder:
    """A new folder for this process.

    Raises:
        PermanentError: the spool cannot be written to.
    """
    try:
        spool.mkdir(parents=True, exist_ok=True)
        while True:
            path = spool / f"{_OURS}{os.getpid()}-{uuid.uuid4().hex[:8]}"
            path.mkdir(mode=0o700)
            if (lock := _try_lock(path)) is not None:
                return SpoolFolder(path, lock)
    except OSError as error:
        fix = "Give the client a folder that this process may write to (spool=…, or STILLHOUSE_STATE)."
        raise PermanentError(f"the spool cannot be made: {error.strerror}", where=str(spool), fix=fix) from error


def orphans(spool: Path) -> Iterable[SpoolFolder]:
    """Takes the lock of every folder that an ended process left."""
    for path in sorted(spool.glob(f"{_OURS}*")):
        if (lock := _try_lock(path)) is not None:
            yield SpoolFolder(path, lock)


def _try_lock(path: Path) -> int | None:
    """The descriptor of the folder's lock, or None when another process has it (or has just removed it)."""
    try:
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(path / "lock").st_ino == os.fstat(lock).st_ino:  # noqa: PTH116 - beside fstat
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass  # somebody else's, or gone
    os.close(lock)
    return None


def waiting(spool: Path) -> int:
    """How many events lie in a spool, read without taking anything. For `doctor` and tests.

    Raises:
        sqlite3.Error: a file cannot be read.
    """
    total = 0
    for file in spool.glob(f"{_OURS}*/parcels.db"):
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
            if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'parcels'").fetchone():  # else it is being made
                total += int(db.execute("SELECT count(*) FROM parcels").fetchone()[0])
    return total
