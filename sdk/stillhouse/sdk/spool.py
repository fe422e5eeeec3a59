"""The spool of one client: its own folder and those it adopted, bounded in bytes."""

import logging
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from stillhouse.sdk import spool_folder
from stillhouse.sdk.spool_folder import Parcel, SpoolFolder
from stillhouse.sdk.stats import Refusal

_log = logging.getLogger("stillhouse.sdk")


class Slot(NamedTuple):
    """Where a parcel lies: which folder, which number."""

    folder: SpoolFolder
    number: int


class Spool:
    """What is not acknowledged yet and must survive the process. For one thread.

    Args:
        path: the folder of all processes' spools.
        max_bytes: what this client's own folder may hold.

    Raises:
        PermanentError: the folder cannot be written to.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path, self._max_bytes = path, max_bytes
        self._own = spool_folder.create(path)
        self._adopted: list[SpoolFolder] = []
        self._dead: list[Slot] = []  # acknowledged, not yet deleted
        self.broken = False  # the last write failed

    @property
    def rows(self) -> int:
        """Parcels that still have to be acknowledged, adopted ones included."""
        return sum(folder.rows for folder in self._folders()) - len(self._dead)

    def adopt(self) -> int:
        """Take over what ended processes left; gives how many events that is."""
        found = 0
        for folder in spool_folder.orphans(self._path):
            try:
                folder.open()
            except sqlite3.Error as error:
                _log.error("the spool %s cannot be read (%s) and is left where it is", folder.path, type(error).__name__)
                folder.close(remove=False)
                continue
            found += folder.rows
            if folder.rows:
                self._adopted.append(folder)
            else:
                folder.close(remove=True)
        return found

    def write(self, parcels: Sequence[Parcel]) -> tuple[list[Slot], Refusal | None]:
        """Put parcels on disk, as many of the first as fit, in one transaction. Acknowledged ones are deleted in the same.

        Returns:
            Their places, and why the rest did not fit.
        """
        room, fitting = self._max_bytes - self._own.bytes, 0
        for parcel in parcels:
            room -= parcel.stored
            if room < 0:
                break
            fitting += 1
        dead = [slot.number for slot in self._dead if slot.folder is self._own]
        try:
            numbers = self._own.change(parcels[:fitting], dead)
        except sqlite3.Error as error:
            if not self.broken:
                _log.error("the spool cannot be written (%s): unsent events are held in memory only", type(error).__name__)
            self.broken = True
            return [], Refusal.DISK_FULL
        self.broken = False
        self._dead = [slot for slot in self._dead if slot.folder is not self._own]
        return [Slot(self._own, number) for number in numbers], None if fitting == len(parcels) else Refusal.SPOOL_FULL

    def acknowledged(self, slot: Slot) -> None:
        """Its parcel is with the broker. Deleted with the next `write` or `sweep`."""
        self._dead.append(slot)

    def sweep(self) -> None:
        """Delete what was acknowledged, and adopted folders that are empty.

        What cannot be deleted now is tried again: it is a duplicate at worst.
        """
        for folder in self._folders():
            numbers = [slot.number for slot in self._dead if slot.folder is folder]
            if not numbers:
                continue
            try:
                folder.change(delete=numbers)
            except sqlite3.Error as error:
                _log.debug("acknowledged events stay in the spool for now (%s)", type(error).__name__)
                continue
            self._dead = [slot for slot in self._dead if slot.folder is not folder]
            if folder is not self._own and not folder.rows:
                self._adopted.remove(folder)
                folder.close(remove=True)

    def read(self, after: dict[SpoolFolder, int], limit: int) -> Iterator[tuple[Slot, Parcel]]:
        """Up to `limit` parcels beyond the numbers in `after`, which moves along."""
        for folder in self._folders():
            if limit <= 0:
                return
            try:
                rows = list(folder.read(after.get(folder, 0), limit))
            except sqlite3.Error as error:
                _log.error("the spool %s cannot be read (%s)", folder.path, type(error).__name__)
                continue
            limit -= len(rows)
            dead = {slot.number for slot in self._dead if slot.folder is folder}
            for number, parcel in rows:
                after[folder] = number
                if number not in dead:
                    yield Slot(folder, number), parcel

    def fetch(self, slot: Slot) -> Parcel | None:
        """The parcel in a place, or None when it cannot be read."""
        return next((parcel for found, parcel in self.read({slot.folder: slot.number - 1}, 1) if found == slot), None)

    def close(self) -> int:
        """Give every folder back; gives how many events are left in them."""
        self.sweep()
        left = self.rows
        for folder in self._folders():
            folder.close(remove=not folder.rows)
        return left

    def forget(self) -> None:
        """In a forked child: these are the parent's."""
        for folder in self._folders():
            folder.forget()

    def _folders(self) -> list[SpoolFolder]:
        return [self._own, *self._adopted]
