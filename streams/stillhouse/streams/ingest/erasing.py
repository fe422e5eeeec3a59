"""Forgetting a subject: tombstones in place of its rows, and no chunk of their events. All of it may be done again."""

from collections.abc import Iterable, Sequence

from stillhouse.schemas.fold import ERASED, tombstone
from stillhouse.sdk.store import Store
from stillhouse.sdk.store_arrow import quoted
from stillhouse.streams.ingest.rows import Read, Row, row_of

AT_ONCE = 500


def erase(store: Store, tenant: str, subjects: Sequence[str], now: int) -> int:
    """Bury every row of some subjects of a tenant. Old versions go with the next maintenance.

    Returns:
        How many rows were erased.

    Raises:
        UnreachableError: the store does not answer.
    """
    erased = 0
    for some in _shares(subjects):
        where = f"tenant = {quoted(tenant)} AND subject IN ({some}) AND content <> {quoted(ERASED)}"
        while rows := store.trajectories(where):  # one that changed meanwhile is found again
            erased += bury(store, rows, now)
    return erased


def bury(store: Store, rows: Sequence[Row], now: int) -> int:
    """Leave a tombstone of every row that is still as given, and delete its chunks.

    Returns:
        How many became one.

    Raises:
        UnreachableError: the store does not answer.
    """
    changed = store.compare_and_set("trajectories", [tombstone_of(row, now) for row in rows])
    delete_chunks(store, [row["key"] for row in rows])
    return changed


def tombstone_of(row: Row, now: int) -> Row:
    """The row that is left of one: whose it was, and where it was read."""
    bare = tombstone(row["key"], row["tenant"], row["trajectory_id"], row["subject"])
    read = Read(row["partition"], row["first_offset"], row["last_offset"], row["appended_at"])
    return row_of(bare, [], row, read, slow_ms=0, stored_at=now, reason=ERASED)


def clear_graves(store: Store) -> int:
    """Delete the chunks of erased trajectories that a crash left, or a writer who did not know yet.

    Returns:
        How many.

    Raises:
        UnreachableError: the store does not answer.
    """
    return delete_chunks(store, [row["key"] for row in store.trajectories(f"content = {quoted(ERASED)}", ("key",))])


def delete_chunks(store: Store, trajectories: Sequence[str]) -> int:
    """Delete all chunks of some trajectories, whether a row names them or not.

    Returns:
        How many.

    Raises:
        UnreachableError: the store does not answer.
    """
    found = [row["key"] for some in _shares(trajectories) for row in store.rows("transcripts", f"trajectory IN ({some})", ("key",))]
    for some in _shares(found):  # nothing found, nothing written: a deletion is a version of the table
        store.delete("transcripts", f"key IN ({some})")
    return len(found)


def _shares(values: Sequence[str]) -> Iterable[str]:
    """The values as SQL lists, some at a time."""
    for start in range(0, len(values), AT_ONCE):
        yield ", ".join(quoted(value) for value in values[start : start + AT_ONCE])
