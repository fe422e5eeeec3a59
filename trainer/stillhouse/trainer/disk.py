"""A full disk is something to be told of, and to go on after."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stillhouse.schemas.errors import RetryableError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# How libraries that write without Python say it: lance and safetensors give the system's words, torch gives its own.
_SAID = (
    "no space left on device",
    "disk quota exceeded",
    "file too large",
    "storage full",
    "file write failed",
    "pytorchstreamwriter failed",
    "unexpected pos ",  # torch, of an archive that is shorter than what it wrote
)


_NO_ROOM = "there is no room to write"
WINDOW_AGAIN = "run the window again: it goes on from where it was"


@contextmanager
def names_full_disk(folder: Path, then: str = WINDOW_AGAIN) -> Iterator[None]:
    """Say it in one sentence when what is written below `folder` no longer fits.

    Args:
        folder: where it is written.
        then: what to do once there is room.

    Raises:
        RetryableError: the disk, the quota or the limit of a file's size was reached.
    """
    try:
        yield
    except Exception as error:  # each library has its own class for it
        if not is_full(error) or _said_so(error):
            raise
        raise RetryableError(
            f"{_NO_ROOM}: {next(iter(str(error).splitlines()), type(error).__name__)}",
            where=str(folder),
            fix=f"Free some space on its disk, or raise the quota, and {then}.",
        ) from error


def _said_so(error: Exception) -> bool:
    """Whether somebody closer to the file, perhaps in another process, has said it in our words."""
    return isinstance(error, RetryableError) and error.what.startswith(_NO_ROOM)


def is_full(error: BaseException) -> bool:
    """Whether an error, or one that it came from, says that there was no room to write."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.errno in _FULL:
            return True
        if any(words in str(found).lower() for words in _SAID):
            return True
        found = found.__cause__ or found.__context__
    return False
