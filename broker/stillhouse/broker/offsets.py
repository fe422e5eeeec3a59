"""Committed offsets of all groups: in memory, and in a log of their own that is appended to and now and then rewritten.

Each entry of the log is: length u32, CRC-32 u32, JSON `{"group": g, "set": [[topic, partition, offset, leader epoch, metadata], ...]}` or
`{"group": g, "drop": [[topic, partition], ...] | null}` (null: the whole group). A torn end is cut off at the start.
"""

import json
import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from stillhouse.broker.files import replace, sync_directory, write_at

log = logging.getLogger("stillhouse.broker")
_FRAME = struct.Struct(">II")
_REWRITE_ABOVE = 256 * 1024  # bytes, and four times what the last rewrite needed
Place = tuple[str, int]


class Committed(NamedTuple):
    """A group's position in a partition."""

    offset: int
    leader_epoch: int
    metadata: str | None


class Offsets:
    """Committed offsets by group and (topic, partition)."""

    def __init__(self, path: Path) -> None:
        """Read `path`, made if absent. Raises OSError."""
        self.path = path
        self.broken = False
        self.groups: dict[str, dict[Place, Committed]] = {}
        self._size = self._read()
        self._live = 0
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(self._descriptor, self._size)
        sync_directory(path.parent)

    def _read(self) -> int:
        data = self.path.read_bytes() if self.path.exists() else b""
        position = 0
        while position + _FRAME.size <= len(data):
            length, crc = _FRAME.unpack_from(data, position)
            payload = data[position + _FRAME.size : position + _FRAME.size + length]
            if len(payload) != length or zlib.crc32(payload) != crc:
                break
            self._apply(json.loads(payload))
            position += _FRAME.size + length
        if position < len(data):
            log.warning("%s: cut %d bytes of an unfinished write", self.path, len(data) - position)
        return position

    def _apply(self, entry: dict[str, Any]) -> None:
        group = entry["group"]
        if "set" in entry:
            places = self.groups.setdefault(group, {})
            for topic, partition, *committed in entry["set"]:
                places[topic, partition] = Committed(*committed)
        elif entry["drop"] is None:
            self.groups.pop(group, None)
        else:
            for topic, partition in entry["drop"]:
                self.groups.get(group, {}).pop((topic, partition), None)
            if not self.groups.get(group, True):
                del self.groups[group]

    def _write(self, entry: dict[str, Any]) -> None:
        frame = _frame(entry)
        write_at(self._descriptor, frame, self._size)
        self._size += len(frame)
        self._apply(entry)
        if self._size > max(_REWRITE_ABOVE, 4 * self._live):
            self._rewrite()

    def _rewrite(self) -> None:
        frames = b"".join(_frame(_set_entry(group, places)) for group, places in self.groups.items())
        try:
            replace(self.path, frames)
            descriptor = os.open(self.path, os.O_RDWR)
        except OSError as error:
            log.error("%s: not rewritten, goes on growing: %s", self.path, error)
            self._live = self._size
            return
        os.close(self._descriptor)
        self._descriptor, self._size, self._live = descriptor, len(frames), len(frames)

    def commit(self, group: str, places: dict[Place, Committed]) -> None:
        """Set offsets. Raises OSError and then nothing has changed."""
        if places:
            self._write(_set_entry(group, places))

    def drop(self, group: str, places: Iterable[Place] | None = None) -> None:
        """Forget a group's offsets, or all of them. Raises OSError."""
        if group in self.groups:
            self._write({"group": group, "drop": None if places is None else [list(place) for place in places]})

    def drop_topic(self, topic: str) -> None:
        """Forget every group's offsets in a deleted topic. Raises OSError."""
        for group, places in list(self.groups.items()):
            if gone := [place for place in places if place[0] == topic]:
                self.drop(group, gone)

    def begin_sync(self) -> tuple[int, Callable[[], None]]:
        """See `commit.Syncable`."""
        return os.dup(self._descriptor), lambda: None

    def close(self, *, fsync: bool) -> None:
        """Close the file. Raises OSError."""
        try:
            if fsync:
                os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)


def _set_entry(group: str, places: dict[Place, Committed]) -> dict[str, Any]:
    return {"group": group, "set": [[*place, *committed] for place, committed in places.items()]}


def _frame(entry: dict[str, Any]) -> bytes:
    payload = json.dumps(entry, separators=(",", ":")).encode()
    return _FRAME.pack(len(payload), zlib.crc32(payload)) + payload
