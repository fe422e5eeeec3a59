"""Which worker a process is: an ordinal, held by a lock on a file for as long as the process lives.

aiokafka does not fence two static members with one name: both would read. So nobody takes an ordinal that is held.
"""

import fcntl
import os
import socket
from hashlib import blake2b
from pathlib import Path

from stillhouse.schemas.errors import PermanentError

MOST = 256


class Ordinal:
    """A held ordinal. Keep it: the lock goes with the process (kill -9 too).

    `instance` is the process's name among those of all machines, the same after a restart.
    """

    def __init__(self, number: int, descriptor: int, instance: str) -> None:
        self.number, self.instance, self._descriptor = number, instance, descriptor

    def release(self) -> None:
        """Let it go."""
        os.close(self._descriptor)


def _place(folder: Path) -> str:
    """This folder of this machine, the same after a restart."""
    digest = blake2b(str(folder.resolve()).encode(), digest_size=4).hexdigest()
    return f"{socket.gethostname()}-{digest}"


def hold(folder: Path, name: str, wanted: int | None = None) -> Ordinal:
    """Take an ordinal.

    Args:
        folder: where the lock files are (`run/` of the state folder).
        name: what is numbered.
        wanted: this one, or the least that is free.

    Raises:
        PermanentError: another process of this machine holds it.
    """
    for number in range(MOST) if wanted is None else [wanted]:
        descriptor = os.open(folder / f"{name}-{number}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        # A lock is of one folder on one machine; who asks for a number vouches for it on all of them.
        return Ordinal(number, descriptor, str(number) if wanted is not None else f"{_place(folder)}-{number}")
    held = f"{name}-{wanted}" if wanted is not None else f"all of {MOST}"
    raise PermanentError(f"another process is {held}", where=str(folder), fix="Stop it, or take another --ordinal.")
