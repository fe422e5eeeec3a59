"""Two trunks of errors: worth another try, and not. Every message says what, where and what to do."""


class StillhouseError(Exception):
    """Base of all errors that Stillhouse raises on purpose.

    Args:
        what: what is wrong, in one sentence.
        where: file, topic, setting or address it is wrong at.
        fix: what the reader can do about it.
    """

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
    """A broker, store or server does not answer (exit code 3)."""


class GateError(PermanentError):
    """A gate said no (exit code 4)."""


class UsageError(PermanentError):
    """The caller asked for something that does not exist or does not fit (exit code 2)."""


class MissingExtraError(PermanentError):
    """A part needs packages that are not installed.

    Args:
        part: what was asked for.
        extra: the extra of the `stillhouse` distribution that brings it.
    """

    def __init__(self, part: str, extra: str) -> None:
        super().__init__(f"{part} needs packages that are not installed", fix=f"Install them with: pip install 'stillhouse[{extra}]'")
