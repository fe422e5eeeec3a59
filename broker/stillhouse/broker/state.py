"""A broker's state folder: who holds it, its version, its identity, and everything kept in it."""

import fcntl
import logging
import os
import uuid
from pathlib import Path
from typing import Any

from stillhouse.broker.coordinator import Coordinator
from stillhouse.broker.errors import BrokerError, Code, KafkaError
from stillhouse.broker.files import read_json, replace_json
from stillhouse.broker.offsets import Offsets
from stillhouse.broker.topics import Topics

log = logging.getLogger("stillhouse.broker")
VERSION = 1
_ID_BLOCK = 1000


class BrokerState:
    """Topics, groups and identity of one broker, in one folder that no other process may open."""

    def __init__(self, folder: Path, now_ms: int, *, fsync: bool, default_partitions: int) -> None:
        """Open or make the folder. Raises BrokerError when it can't be used: locked, not writable, of a newer version, damaged."""
        self.folder, self.fsync = folder, fsync
        self._lock = -1
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            self._open(now_ms, default_partitions)
        except BrokerError:
            self._release()
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._release()
            raise BrokerError(
                f"the state folder {folder} can't be used: {error}; make it readable and writable, or give another --dir"
            ) from error

    def _take_lock(self) -> None:
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BrokerError(f"another broker runs on the state folder {self.folder}; stop it or give another --dir") from None

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _open(self, now_ms: int, default_partitions: int) -> None:
        path = self.folder / "broker.json"
        saved: dict[str, Any] = read_json(path) or {"version": VERSION, "cluster": uuid.uuid4().hex[:22], "next_producer_id": 1}
        if saved["version"] > VERSION:
            raise BrokerError(
                f"the state folder {self.folder} is of version {saved['version']}, this broker knows up to {VERSION}; "
                "install a newer stillhouse or give another --dir"
            )
        self._saved = saved
        self._next_id = self._reserved = int(saved["next_producer_id"])
        replace_json(path, saved)
        self.topics = Topics(self.folder / "topics", now_ms, fsync=self.fsync, default_partitions=default_partitions)
        self.offsets = Offsets(self.folder / "offsets.log")
        self.coordinator = Coordinator(self.offsets)

    @property
    def cluster(self) -> str:
        """The cluster's id, made once per folder."""
        return str(self._saved["cluster"])

    def new_producer_id(self) -> int:
        """An id that this folder never gave before, also across kill -9. Raises KafkaError KAFKA_STORAGE_ERROR."""
        if self._next_id >= self._reserved:
            saved = self._saved | {"next_producer_id": self._next_id + _ID_BLOCK}
            try:
                replace_json(self.folder / "broker.json", saved)
            except OSError as error:
                raise KafkaError(Code.KAFKA_STORAGE_ERROR, str(error.strerror)) from error
            self._saved, self._reserved = saved, self._next_id + _ID_BLOCK
        self._next_id += 1
        return self._next_id - 1

    def close(self, now_ms: int) -> None:
        """Seal the logs and let go of the folder."""
        self.topics.close(now_ms)
        try:
            self.offsets.close(fsync=self.fsync)
        except OSError as error:
            log.error("%s: committed offsets may not be durable: %s", self.offsets.path, error)
        self._release()
