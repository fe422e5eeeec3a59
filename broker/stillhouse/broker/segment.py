"""One file of a partition's log with its sparse index.

The file holds record batches one after another. The index holds, at least 4 KiB apart, (offset, position, newest timestamp before it).
It is kept in memory while the segment is written to and in `<base offset>.index` once it is sealed, with the log's size in front:
a segment whose index states the size its log has is trusted as it is, any other is read through and its torn end cut off.
"""

import logging
import os
import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stillhouse.broker.batch import HEADER_SIZE, Batch, crc_matches, first_at_or_after, read_header
from stillhouse.broker.files import replace, sync_directory, write_at

log = logging.getLogger("stillhouse.broker")
INDEX_INTERVAL = 4096
_INDEX_HEAD = struct.Struct(">8sqqq")  # magic, log size, next offset, newest timestamp
_INDEX_MAGIC = b"SHINDEX1"
_ENTRY = struct.Struct("=qqq")  # offset, position, newest timestamp before
NO_TIMESTAMP = -1


class Segment:
    """Batches from `base_offset` on. Open for appending until sealed; reading works in both states."""

    def __init__(self, folder: Path, base_offset: int) -> None:
        """Names the files; use `create` or `load`."""
        self.base_offset = self.next_offset = base_offset
        self.path = folder / f"{base_offset:020}.log"
        self.index_path = self.path.with_suffix(".index")
        self.size = 0
        self.newest = NO_TIMESTAMP
        self._index: array[int] | None = array("q")  # None once it is on disk
        self._entries = 0
        self._indexed_to = -INDEX_INTERVAL
        self._descriptor: int | None = None

    @classmethod
    def create(cls, folder: Path, base_offset: int) -> "Segment":
        """A new, empty, open segment. Raises OSError."""
        segment = cls(folder, base_offset)
        segment._descriptor = os.open(segment.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        sync_directory(folder)
        return segment

    @classmethod
    def load(cls, folder: Path, base_offset: int) -> "Segment":
        """A segment from disk, sealed: trusted by its index or read through and cut at the first damaged batch. Raises OSError."""
        segment = cls(folder, base_offset)
        if not segment._trust_index():
            segment._recover()
        return segment

    def _trust_index(self) -> bool:
        try:
            data = self.index_path.read_bytes()
        except FileNotFoundError:
            return False
        if len(data) < _INDEX_HEAD.size or (len(data) - _INDEX_HEAD.size) % _ENTRY.size:
            return False
        magic, size, next_offset, newest = _INDEX_HEAD.unpack_from(data)
        if magic != _INDEX_MAGIC or size != self.path.stat().st_size:
            return False
        self.size, self.next_offset, self.newest = size, next_offset, newest
        self._entries, self._index = (len(data) - _INDEX_HEAD.size) // _ENTRY.size, None
        return True

    def _recover(self) -> None:
        with self._reading() as descriptor:
            total = os.fstat(descriptor).st_size
            while (head := read_header(os.pread(descriptor, HEADER_SIZE, self.size))) is not None:
                whole = head.base_offset >= self.next_offset and self.size + head.size <= total
                if not whole or not crc_matches(head, os.pread(descriptor, head.size, self.size)):
                    break
                self._count_in(head, head.size)
        if self.size < total:
            log.warning("%s: cutting %d bytes of an unfinished write at %d", self.path, total - self.size, self.size)
        self.seal()
        self.close()

    def _count_in(self, batch: Batch, size: int) -> None:
        assert self._index is not None
        if self.size - self._indexed_to >= INDEX_INTERVAL:
            self._index.extend((batch.base_offset, self.size, self.newest))
            self._entries += 1
            self._indexed_to = self.size
        self.size += size
        self.next_offset = batch.next_offset
        self.newest = max(self.newest, batch.max_timestamp)

    def append(self, data: bytes | bytearray, batch: Batch) -> None:
        """Add one stored batch whose header is `batch`. Raises OSError and then is as it was before."""
        if self._descriptor is None:
            raise ValueError(f"{self.path} is sealed")
        write_at(self._descriptor, data, self.size)
        self._count_in(batch, len(data))

    def reopen(self) -> None:
        """Open a sealed segment for appending: its index moves to memory."""
        if self._index is None:
            self._index = array("q", self.index_path.read_bytes()[_INDEX_HEAD.size :])
        self._descriptor = os.open(self.path, os.O_RDWR)
        self.index_path.unlink(missing_ok=True)

    def duplicate(self) -> int:
        """A descriptor of its own for the open file, for fsync in another thread; the caller closes it."""
        assert self._descriptor is not None
        return os.dup(self._descriptor)

    def seal(self, *, fsync: bool = True) -> None:
        """Make the log and then its index durable; the index leaves memory. Raises OSError and then stays open."""
        if self._index is None:
            return
        if fsync:
            with self._reading() as descriptor:
                os.fsync(descriptor)
        head = _INDEX_HEAD.pack(_INDEX_MAGIC, self.size, self.next_offset, self.newest)
        os.truncate(self.path, self.size)  # off with what a crash or a failed append left behind
        replace(self.index_path, head + self._index.tobytes())

    def close(self) -> None:
        """Close the file and, if the index is on disk, drop it from memory."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if self.index_path.exists():
            self._index = None

    def delete(self) -> None:
        """Remove its files."""
        self.close()
        self.index_path.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    @contextmanager
    def _reading(self) -> Iterator[int]:
        if self._descriptor is not None:
            yield self._descriptor
            return
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _bisect(self, column: int, value: int, *, before: bool) -> int:
        """The position in the log from which to look for `value`: that of the last entry whose `column` is at most (or below) it."""
        search = bisect_left if before else bisect_right
        if self._index is not None:
            index = self._index
            found = search(range(self._entries), value, key=lambda i: index[i * 3 + column])
            return index[(found - 1) * 3 + 1] if found else 0
        with self.index_path.open("rb") as file:

            def entry(number: int) -> tuple[int, int, int]:
                return _ENTRY.unpack(os.pread(file.fileno(), _ENTRY.size, _INDEX_HEAD.size + number * _ENTRY.size))

            found = search(range(self._entries), value, key=lambda i: entry(i)[column])
            return entry(found - 1)[1] if found else 0

    def batches(self, position: int = 0) -> Iterator[tuple[int, Batch]]:
        """(position, header) of each batch from `position` on."""
        with self._reading() as descriptor:
            while position < self.size:
                batch = read_header(os.pread(descriptor, HEADER_SIZE, position))
                if batch is None:
                    raise OSError(f"{self.path}: no record batch at {position}: the file was changed or its disk is failing")
                yield position, batch
                position += batch.size

    def position_of(self, offset: int) -> tuple[int, int]:
        """(position, bytes) of the batch that holds `offset`, or of the next one; (size, 0) after the last."""
        for position, batch in self.batches(self._bisect(0, offset, before=False)):
            if batch.next_offset > offset:
                return position, batch.size
        return self.size, 0

    def read(self, position: int, size: int) -> bytes:
        """Up to `size` bytes from `position`."""
        with self._reading() as descriptor:
            return os.pread(descriptor, size, position)

    def at_time(self, timestamp: int, before_offset: int) -> tuple[int, int] | None:
        """(offset, timestamp) of the first record below `before_offset` that is not older than `timestamp` (ms), or None."""
        if self.newest < timestamp:
            return None
        for position, batch in self.batches(self._bisect(2, timestamp, before=True)):
            if batch.base_offset >= before_offset:
                return None
            if batch.max_timestamp >= timestamp and (found := first_at_or_after(self.read(position, batch.size), timestamp)):
                return found
        return None
