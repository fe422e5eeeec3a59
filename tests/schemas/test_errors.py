"""Errors and the exit codes of the processes that they end."""

import pytest

from stillhouse.schemas.errors import (
    ExitCode,
    GateError,
    MissingExtraError,
    PermanentError,
    RetryableError,
    StillhouseError,
    UnreachableError,
    UsageError,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("no such window"), 2),
        (UnreachableError("no broker"), 3),
        (GateError("the gate said no"), 4),
        (PermanentError("broken"), 1),
        (RetryableError("busy"), 1),
        (MissingExtraError("training", "trainer"), 2),
    ],
)
def test_each_kind_has_the_exit_code_that_the_design_fixes(error: StillhouseError, code: int) -> None:
    assert error.exit_code == code


def test_an_exit_code_is_what_a_process_can_end_with() -> None:
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(ExitCode.GATE_SAID_NO)
    assert stop.value.code == 4
