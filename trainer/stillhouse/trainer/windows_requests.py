"""What asks for a window: rows `requested` of the table `windows`, which whoever sees a reason has written.

A window that is claimed lists the requests it answers, so the claim and the answer are one write; that a row is `taken` follows.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from stillhouse.schemas.window_request import REQUESTED, WINDOWS, WindowRequest, taken
from stillhouse.sdk.store import Store
from stillhouse.sdk.store_arrow import quoted
from stillhouse.trainer.windows_types import Window


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request, with its row's key."""

    key: str
    request: WindowRequest


def open_requests(store: Store, lineage: str, windows: Iterable[Window]) -> list[Asked]:
    """The requests that no window of the lineage has answered, oldest first.

    Args:
        store: where they are.
        lineage: whose.
        windows: all windows of the lineage. One that was rejected has answered too: the same again would be rejected again.
    """
    answered = {key for window in windows for key in window.plan.requests}
    return [
        Asked(key=row["key"], request=msgspec.convert(row["data"], WindowRequest, strict=False))
        for row in _requested(store, lineage)
        if row["key"] not in answered
    ]


def settle(store: Store, lineage: str, windows: Iterable[Window], now: int) -> int:
    """Mark the rows of answered requests as taken. `now` is in microseconds; returns how many there were."""
    by = {key: window.key for window in windows for key in window.plan.requests}
    rows = [taken(row, now, by=by[row["key"]]) for row in _requested(store, lineage) if row["key"] in by]
    return store.compare_and_set(WINDOWS, rows, "base_state")


def _requested(store: Store, lineage: str) -> list[dict[str, Any]]:
    return store.rows(WINDOWS, f"state = {quoted(REQUESTED)} AND scope = {quoted(lineage)}", order="created_at")
