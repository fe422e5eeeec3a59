"""Two trunks of errors: worth another try, and not. Every message says what, where and what to do.

Every process of ours ends with the same exit code for the same kind of error: it stands here, beside the kinds.
"""

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What a process ends with."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_REACHABLE = 3
    GATE_SAID_NO = 4


class StillhouseError(Exception):
    """Base of all errors that Stillhouse raises on purpose.

    Args:
        what: what is wrong, in one sentence.
        where: file, topic, setting or address it is wrong at.
        fix: what the reader can do about it.

    Attributes:
        exit_code: of a process that it ends.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.FAILED

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what)

    def __str__(self) -> str:
        """One line a person can act on."""
        return f"{self.what}{f' ({self.where})' if self.where else ''}{f'. {self.fix}' if self.fix else ''}"


class RetryableError(StillhouseError):
    """Something outside is away or busy: the same call may work later. Never a reason for the DLQ."""

    def __init__(self, what: str, *, where: str = "", fix: str = "", retry_after: float = 1.0) -> None:
        self.retry_after = retry_after
        super().__init__(what, where=where, fix=fix)


class PermanentError(StillhouseError):
    """The same call will fail again: the input, the settings or the state must change."""


class UnreachableError(RetryableError):
    """A broker, store or server does not answer."""

    exit_code = ExitCode.NOT_REACHABLE


class GateError(PermanentError):
    """A gate said no."""

    exit_code = ExitCode.GATE_SAID_NO


class UsageError(PermanentError):
    """The caller asked for something that does not exist or does not fit."""

    exit_code = ExitCode.USAGE


class MissingExtraError(PermanentError):
    """A part needs packages that are not installed.

    Args:
        part: what was asked for.
        extra: the extra of the `stillhouse` distribution that brings it.
    """

    exit_code = ExitCode.USAGE

    def __init__(self, part: str, extra: str) -> None:
        super().__init__(f"{part} needs packages that are not installed", fix=f"Install them with: pip install 'stillhouse[{extra}]'")
