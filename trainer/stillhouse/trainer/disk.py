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


@contextmanager
def names_full_disk(folder: Path) -> Iterator[None]:
    """Say it in one sentence when what is written below `folder` no longer fits.

    Raises:
        RetryableError: the disk, the quota or the limit of a file's size was reached.
    """
    try:
        yield
    except Exception as error:  # each library has its own class for it
        if not is_full(error):
            raise
        raise RetryableError(
            f"there is no room to write: {next(iter(str(error).splitlines()), type(error).__name__)}",
            where=str(folder),
            fix="Free some space on its disk, or raise the quota, and run the window again: it goes on from where it was.",
        ) from error


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
