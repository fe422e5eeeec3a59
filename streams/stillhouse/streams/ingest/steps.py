"""The numbered steps of a flush by name, and the hook that the chaos tests kill the process by."""

import os
import signal
from collections.abc import Callable, Mapping
from typing import Literal

Step = Literal["fetch", "decode", "group", "read", "chunks", "rows", "facts", "commit"]
"""1 fetch · 2 decode · 3 group · 4 read (and fold) · 5 chunks, then rows · 6 facts · 7 commit: each named when it is done."""

Reached = Callable[[Step], None]


def unwatched(step: str) -> None:
    """Nothing happens at a step."""


def from_environment(env: Mapping[str, str]) -> Callable[[str], None]:
    """The hook that `STILLHOUSE_TEST_DIE="rows:3"` asks for: SIGKILL to this process when step `rows` is done for the 3rd time.

    With `rows:3:STOP` the signal is SIGSTOP: a worker that hangs and comes back. For tests of delivery only.
    """
    wanted = env.get("STILLHOUSE_TEST_DIE", "")
    if not wanted:
        return unwatched
    name, count, *rest = wanted.split(":")
    number = signal.Signals[f"SIG{rest[0] if rest else 'KILL'}"]
    seen = 0

    def reached(step: str) -> None:
        nonlocal seen
        seen += step == name
        if step == name and seen == int(count):
            os.kill(os.getpid(), number)

    return reached
