"""A row `requested` in the table `windows`: signals asks for a window, the trainer's daemon looks whether it should run one.

A request is a hint and nothing more: what a window holds is planned by the trainer from the store as it is then. Its row has a key of
its own that no window can have, and the state `requested` until the daemon has taken it (`taken`, by compare-and-set).
"""

from typing import Any
from urllib.parse import quote

import msgspec

from stillhouse.schemas.tables import ledger_row

WINDOWS = "windows"
REQUESTED, TAKEN = "requested", "taken"


class WindowRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request; the value of its row's column `data`.

    Attributes:
        lineage: of the window that is asked for.
        reason: a word: `successes`, `age`, `failures`, `coverage`, `teacher`.
        bucket: of the watermark: its microseconds divided by the bucket's length.
        detail: the reason as a sentence, with its numbers.
        families: those that gave the reason; empty: all.
    """

    lineage: str
    reason: str
    bucket: int
    detail: str = ""
    families: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The key of its row: one request for each lineage, reason and bucket, whoever makes it."""
        return f"request/{quote(self.lineage, safe='')}/{self.reason}/{self.bucket:012d}"


def row_of(request: WindowRequest, now: int) -> dict[str, Any]:
    """The row of a new request. `now` is microseconds since the epoch."""
    return ledger_row(request.key, request.lineage, REQUESTED, "", msgspec.to_builtins(request), now, now)


def taken(row: dict[str, Any], now: int, *, by: str = "") -> dict[str, Any]:
    """The row of a request that was taken, for `compare_and_set(WINDOWS, [row], "base_state")`. `by` is the window that came of it."""
    data = {**row["data"], "window": by}
    return ledger_row(row["key"], row["scope"], TAKEN, REQUESTED, data, row["created_at"], now)
