"""The leader ledger in the store: read whole, appended to by one of several planners at a time."""

import time
from collections.abc import Callable, Iterable
from urllib.parse import quote

import msgspec

from stillhouse.schemas.errors import RetryableError
from stillhouse.schemas.ledger import Batch, LeaderLedger
from stillhouse.schemas.tables import ledger_row
from stillhouse.sdk.store import Store
from stillhouse.sdk.window_settings import CurationSettings

LEADERS = "leaders"


def _wall_clock() -> int:
    return time.time_ns() // 1000


def load_ledger(store: Store, settings: CurationSettings) -> LeaderLedger:
    """The leader ledger of the store. `settings` say how new tasks are placed."""
    batches = [msgspec.convert(row["data"], Batch, strict=False) for row in store.rows(LEADERS)]
    return LeaderLedger(
        batches,
        seed=settings.seed,
        test_share=settings.test_share,
        validation_share=settings.validation_share,
        similarity=settings.similarity,
    )


def store_ledger(store: Store, batches: Iterable[Batch], *, clock: Callable[[], int] = _wall_clock) -> None:
    """Append what a planning added. `clock` gives microseconds since the epoch.

    Raises:
        RetryableError: another planner added to the same scope at the same time: place the tasks again with the ledger as it is now.
    """
    now = clock()
    for batch in batches:
        scope = f"{quote(batch.tenant, safe='')}/{quote(batch.family, safe='')}"
        row = ledger_row(batch.key, scope, "added", "", msgspec.to_builtins(batch), now, now)
        if store.insert_if_absent(LEADERS, [row]) != 1:
            raise RetryableError("another planner placed tasks at the same time", where=f"leaders of {scope}")
