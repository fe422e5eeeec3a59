"""The store: tables of `schemas/tables.py` in LanceDB, read and written so that several processes can share them.

Every table that is merged into declares its unenforced primary key: without it LanceDB does not see that two writers
insert the same key. Writes are insert-if-absent or compare-and-set; nothing is overwritten blindly but by `update`.
Only this file and `store_arrow.py` know LanceDB and pyarrow, and import them inside functions.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from stillhouse.schemas import tables
from stillhouse.schemas.errors import MissingExtraError, PermanentError, UnreachableError
from stillhouse.schemas.event_set import Member, unpack
from stillhouse.schemas.events import AgentEvent
from stillhouse.schemas.fold import ERASED, fold_set, tombstone
from stillhouse.schemas.trajectory import Trajectory
from stillhouse.sdk import store_arrow
from stillhouse.sdk.store_arrow import Row, quoted, store_errors

KEYS_A_QUERY = 2000


class StoreSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Section `[store]`. `uri` is a folder or an object store's address; empty: `lance/` in the state folder."""

    uri: str = ""

    def location(self, state: Path) -> str:
        """Where the tables are, given the state folder."""
        return self.uri or str(state / "lance")


class RowRef(msgspec.Struct, frozen=True, kw_only=True):
    """A row as it was: what a window lists. Chunks are immutable, so no version of a table is pinned."""

    key: str
    revision: int
    content: str
    chunks: tuple[str, ...]


class Store:
    """One LanceDB database. Thread-safe; a handle always reads the newest version."""

    def __init__(self, uri: str, connection: Any) -> None:
        self.uri = uri
        self._db = connection
        self._open: dict[str, Any] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, uri: str | Path, *, create: bool = True) -> "Store":
        """The store at a folder or an object store's address.

        Args:
            uri: where.
            create: make the folder if it is absent.

        Raises:
            PermanentError: there is no store and `create` is false.
            UnreachableError: it does not answer.
            MissingExtraError: LanceDB is not installed.
        """
        try:
            import lancedb
        except ImportError as error:
            raise MissingExtraError("the store", "streams") from error
        if not create and "://" not in str(uri) and not Path(uri).is_dir():
            raise PermanentError("there is no store", where=str(uri), fix="Run `stillhouse up` or the ingest with the same --state first.")
        with store_errors(str(uri)):
            return cls(str(uri), lancedb.connect(str(uri), read_consistency_interval=timedelta(0)))

    def table(self, name: str) -> Any:
        """The LanceDB table of that name, made if it is absent.

        Raises:
            PermanentError: it was made without the declared primary key, or with other columns.
            UnreachableError: the store does not answer.
        """
        with self._lock:
            found = self._open.get(name)
            if found is None:
                with store_errors(f"{self.uri}/{name}"):
                    found = self._open[name] = store_arrow.open_or_create(self._db, tables.table(name), f"{self.uri}/{name}")
            return found

    def rows(
        self,
        table: str,
        where: str | None = None,
        columns: Sequence[str] | None = None,
        limit: int | None = None,
        order: str | None = None,
    ) -> list[Row]:
        """Rows of a table, JSON columns as values.

        Args:
            table: its name.
            where: a SQL condition over its columns.
            columns: which ones; all by default.
            limit: at most so many.
            order: a column, `-` in front for descending. The key by default, so that a list is stable.

        Raises:
            UsageError: no such table or column.
            UnreachableError: the store does not answer.
        """
        spec = tables.table(table)
        with store_errors(f"{self.uri}/{table}"):
            return store_arrow.query(self.table(table), spec, where, columns, limit, order or spec.key)

    def by_key(self, table: str, keys: Iterable[str], columns: Sequence[str] | None = None) -> dict[str, Row]:
        """The rows with these keys, by key; absent ones are left out. Raises as `rows` does."""
        spec, found = tables.table(table), {}
        for some in _batches(keys):
            where = f"{spec.key} IN ({', '.join(quoted(key) for key in some)})"
            with store_errors(f"{self.uri}/{table}"):
                for row in store_arrow.query(self.table(table), spec, where, columns, None, None):
                    found[row[spec.key]] = row
        return found

    def trajectories(
        self, where: str | None = None, columns: Sequence[str] | None = None, limit: int | None = None, order: str | None = None
    ) -> list[Row]:
        """Rows of `trajectories`; arguments and errors as `rows`."""
        return self.rows("trajectories", where, columns, limit, order)

    def insert_if_absent(self, table: str, rows: Sequence[Row]) -> int:
        """Insert the rows whose key is not there yet; one of several writers of a key wins.

        Returns:
            How many were inserted.

        Raises:
            PermanentError: a row does not fit the table.
            UnreachableError: the store does not answer, or is full.
        """
        spec = tables.table(table)
        distinct = list({row[spec.key]: row for row in reversed(rows)}.values())
        if not distinct:
            return 0
        with store_errors(f"{self.uri}/{table}"):
            source = store_arrow.source(spec, distinct)
            return int(self.table(table).merge_insert(spec.key).when_not_matched_insert_all().execute(source).num_inserted_rows)

    def compare_and_set(self, table: str, rows: Sequence[Row], expected_column: str = "base_content", *, insert: bool = False) -> int:
        """Replace whole rows, each only if it still is what its writer decided on.

        Args:
            table: its name.
            rows: the new rows, all columns; one for each key.
            expected_column: `base_content` or `base_state`: the row's value there must be the stored row's `content` or `state`.
            insert: insert rows whose key is absent as well.

        Returns:
            How many rows changed. Fewer than sent: somebody was faster; read again and decide again.

        Raises:
            PermanentError: a row does not fit the table.
            UnreachableError: the store does not answer, or is full.
        """
        if not rows:
            return 0
        spec = tables.table(table)
        spec.column(expected_column)
        stored = spec.column(expected_column.removeprefix("base_")).name
        with store_errors(f"{self.uri}/{table}"):
            merge = self.table(table).merge_insert(spec.key).when_matched_update_all(where=f"target.{stored} = source.{expected_column}")
            if insert:
                merge = merge.when_not_matched_insert_all()
            done = merge.execute(store_arrow.source(spec, rows))
            return int(done.num_updated_rows + done.num_inserted_rows)

    def update(self, table: str, key: str, values: Mapping[str, Any]) -> None:
        """Set columns of one row, whatever they were: for bookkeeping, never for what two writers decide. Raises as `insert_if_absent`."""
        spec = tables.table(table)
        with store_errors(f"{self.uri}/{table}"):
            said = {name: store_arrow.sql_of(spec.column(name), value) for name, value in values.items()}
            self.table(table).update(where=f"{spec.key} = {quoted(key)}", values_sql=said)

    def delete(self, table: str, where: str) -> None:
        """Delete the rows that a SQL condition holds for. Raises as `insert_if_absent`."""
        with store_errors(f"{self.uri}/{table}"):
            self.table(table).delete(where)

    def event_sets(self, chunks: Mapping[str, Sequence[str]]) -> dict[str, dict[bytes, Member]]:
        """The stored events of trajectories.

        Args:
            chunks: for each trajectory's key the keys of its chunks.

        Raises:
            PermanentError: a chunk is missing or damaged.
            UnreachableError: the store does not answer.
        """
        wanted = [chunk for some in chunks.values() for chunk in some]
        blobs = {key: row["events"] for key, row in self.by_key("transcripts", wanted, ("key", "events")).items()} if wanted else {}
        sets: dict[str, dict[bytes, Member]] = {}
        for key, some in chunks.items():
            sets[key] = {}
            for chunk in some:
                if chunk not in blobs:
                    raise PermanentError(f"the chunk {chunk} is missing", where=key, fix="Replay the topic: rows are rebuilt from the log.")
                sets[key] |= unpack(blobs[chunk])
        return sets

    def events(self, key: str) -> list[AgentEvent]:
        """All stored events of one trajectory, by (occurred_at, event_id). Empty when there is no such row. Raises as `event_sets`."""
        row = self.by_key("trajectories", [key], ("key", "chunks")).get(key)
        members = self.event_sets({key: row["chunks"]})[key] if row else {}
        return sorted((one.event for one in members.values()), key=lambda event: (event.occurred_at, event.event_id))

    def load(self, keys: Sequence[str]) -> dict[str, Trajectory]:
        """The trajectories with these keys, folded from their events; absent ones are left out. Raises as `event_sets`."""
        rows = self.by_key("trajectories", keys, ("key", "tenant", "trajectory_id", "subject", "content", "chunks"))
        kept = {key: row["chunks"] for key, row in rows.items() if row["content"] != ERASED}
        folded = {key: fold_set(members) for key, members in self.event_sets(kept).items()}
        for key, row in rows.items():
            if key not in kept:
                folded[key] = tombstone(key, row["tenant"], row["trajectory_id"], row["subject"])
        return folded

    def load_at(self, refs: Sequence[RowRef]) -> dict[str, Trajectory]:
        """The trajectories as they were when they were listed, by key.

        Raises:
            PermanentError: a chunk is gone (erased since), or the events do not have the listed content.
            UnreachableError: the store does not answer.
        """
        folded = {key: fold_set(members) for key, members in self.event_sets({ref.key: ref.chunks for ref in refs}).items()}
        for ref in refs:
            if folded[ref.key].content != ref.content:
                raise PermanentError("the stored events are not those that were listed", where=f"{ref.key} revision {ref.revision}")
        return folded

    def table_hash(self) -> str:
        """Hash (hex) of what the rows promise (key, content, status, outcome, scores), sorted by key. Raises as `rows`."""
        return store_arrow.hash_rows(self.rows("trajectories", columns=tables.HASHED))


def _batches(keys: Iterable[str]) -> Iterator[list[str]]:
    distinct = iter(dict.fromkeys(keys))
    while some := list(islice(distinct, KEYS_A_QUERY)):
        yield some


__all__ = ["Row", "RowRef", "Store", "StoreSettings", "UnreachableError"]
