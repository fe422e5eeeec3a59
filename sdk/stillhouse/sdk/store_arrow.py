"""Between rows (dictionaries) and Arrow tables, and the few calls of LanceDB that take more than one line."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import msgspec

from stillhouse.schemas.errors import PermanentError, UnreachableError
from stillhouse.schemas.tables import Column, Table

Row = dict[str, Any]

PRIMARY_KEY = b"lance-schema:unenforced-primary-key"

# LanceDB has no error classes of its own for these: it says RuntimeError, or OSError, with one of these texts.
_AWAY = ("LanceError(IO)", "conflict", "concurrent", "timed out", "timeout", "os error")


@contextmanager
def store_errors(where: str) -> Iterator[None]:
    """Turn what LanceDB raises into our two trunks.

    Raises:
        UnreachableError: the disk, the object store or another writer is in the way; the same call may work later.
        PermanentError: the data or the call does not fit.
    """
    try:
        yield
    except OSError as error:
        raise _away(error, where) from error
    except RuntimeError as error:
        if any(text in str(error) for text in _AWAY):
            raise _away(error, where) from error
        raise PermanentError(f"the store refused: {_short(error)}", where=where) from error
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise PermanentError(f"the store refused: {_short(error)}", where=where) from error


def _away(error: Exception, where: str) -> UnreachableError:
    return UnreachableError(
        f"the store does not take or give data now: {_short(error)}", where=where, fix="Is the disk full, or the store away?"
    )


def _short(error: Exception) -> str:
    return str(error).split(", /", 1)[0][:300]


def quoted(value: str) -> str:
    """A SQL string."""
    return "'" + value.replace("'", "''") + "'"


def schema(table: Table) -> Any:
    """The Arrow schema of a table, its key declared."""
    import pyarrow as pa

    types = {
        "string": pa.string(),
        "json": pa.string(),
        "int64": pa.int64(),
        "float64": pa.float64(),
        "bool": pa.bool_(),
        "binary": pa.large_binary(),
        "strings": pa.list_(pa.string()),
    }
    return pa.schema(
        [
            pa.field(
                column.name,
                types[column.type],
                nullable=not column.required,
                metadata={PRIMARY_KEY: b"true"} if column.name == table.key else None,
            )
            for column in table.columns
        ]
    )


def open_or_create(db: Any, table: Table, where: str) -> Any:
    """The LanceDB table, made empty with its index when absent; refused when it is not the one we mean.

    Raises:
        PermanentError: no declared primary key, or other columns.
    """
    wanted = schema(table)
    try:
        found = db.open_table(table.name)
    except ValueError:
        found = _create(db, table, wanted)
    actual = found.schema
    if (actual.field(table.key).metadata or {}).get(PRIMARY_KEY) != b"true":
        raise PermanentError(
            f"the table {table.name} does not declare its key: two writers would both insert one row",
            where=where,
            fix="It was not made by Stillhouse, or by hand; move it away and replay the topic.",
        )
    if actual.names != wanted.names or actual.types != wanted.types:
        differing = sorted(set(actual.names) ^ set(wanted.names)) or [
            n for n in wanted.names if actual.field(n).type != wanted.field(n).type
        ]
        raise PermanentError(
            f"the table {table.name} has other columns ({', '.join(differing) or 'another order'})",
            where=where,
            fix="It belongs to another version of Stillhouse.",
        )
    return found


def _create(db: Any, table: Table, wanted: Any) -> Any:
    from lancedb.index import BTree

    try:
        made = db.create_table(table.name, schema=wanted)
        made.create_index(table.key, config=BTree())
    except ValueError:  # another process was faster
        return db.open_table(table.name)
    return made


def encoded(column: Column, value: Any) -> Any:
    """A value as its column stores it."""
    return msgspec.json.encode(value).decode() if column.type == "json" and value is not None else value


def sql_of(column: Column, value: Any) -> str:
    """A value as its column stores it, as a SQL expression."""
    from lancedb.util import value_to_sql

    stored = encoded(column, value)
    if column.type == "strings" and stored is not None and not stored:
        return "arrow_cast(make_array(), 'List(Utf8)')"  # LanceDB's own literal of an empty list has no type, and is refused
    return str(value_to_sql(stored))


def source(table: Table, rows: Sequence[Row]) -> Any:
    """Rows as an Arrow table in the table's own schema; absent values are null, unknown names refused.

    Raises:
        ValueError: a row has a name that the table has not.
    """
    import pyarrow as pa

    names = {column.name for column in table.columns}
    for row in rows:
        if not row.keys() <= names:
            raise ValueError(f"{table.name} has no column {', '.join(sorted(row.keys() - names))}")
    wanted = schema(table)
    arrays = [pa.array([encoded(column, row.get(column.name)) for row in rows], wanted.field(column.name).type) for column in table.columns]
    return pa.Table.from_arrays(arrays, schema=wanted)


def query(handle: Any, table: Table, where: str | None, columns: Sequence[str] | None, limit: int | None, order: str | None) -> list[Row]:
    """Rows of a table; see `Store.rows`."""
    from lancedb.query import ColumnOrdering

    chosen = [table.column(name) for name in columns] if columns else list(table.columns)
    names = [column.name for column in chosen]
    ordering = table.column(order.lstrip("-")).name if order else None
    hidden = [ordering] if ordering and ordering not in names else []  # LanceDB sorts by columns that it reads only
    builder = handle.search().select([*names, *hidden])
    if where:
        builder = builder.where(where)
    if order:
        builder = builder.order_by([ColumnOrdering(column_name=ordering, ascending=not order.startswith("-"))])
    if limit is not None:
        builder = builder.limit(limit)
    rows: list[Row] = builder.to_arrow().select(names).to_pylist()
    for column in chosen:
        if column.type == "json":
            for row in rows:
                if row[column.name] is not None:
                    row[column.name] = msgspec.json.decode(row[column.name])
    return rows


def hash_rows(rows: Sequence[Row]) -> str:
    """Hash (hex) of rows in their order."""
    found = blake2b(digest_size=16)
    for row in rows:
        found.update(msgspec.json.encode(list(row.values())))
    return found.hexdigest()
