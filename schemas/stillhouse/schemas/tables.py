"""The tables of the store: names, columns and keys. Data only; `sdk/store.py` makes them with LanceDB.

The first column of every table is its key: unique, never null, the declared (unenforced) primary key and the indexed one.
`content` is the hash or revision of what a row says; `base_content` the one that a writer decided on (compare-and-set).
"""

from dataclasses import dataclass
from typing import Any, Literal

from stillhouse.schemas.errors import UsageError

ColumnType = Literal["string", "int64", "float64", "bool", "binary", "strings", "json"]
"""`strings` is a list of strings; `json` a JSON text in the table and a Python value in the rows that the store takes and gives."""

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    type: ColumnType
    required: bool = False


@dataclass(frozen=True)
class Table:
    """One table; `key` is the name of its first column."""

    name: str
    columns: tuple[Column, ...]

    @property
    def key(self) -> str:
        """The merge key."""
        return self.columns[0].name

    def column(self, name: str) -> Column:
        """The column of that name.

        Raises:
            UsageError: there is none.
        """
        for column in self.columns:
            if column.name == name:
                return column
        names = ", ".join(column.name for column in self.columns)
        raise UsageError(f"the table {self.name} has no column {name}", fix=f"It has: {names}.")


def _columns(type_: ColumnType, names: str) -> tuple[Column, ...]:
    return tuple(Column(name, type_) for name in names.split())


_KEY = Column("key", "string", required=True)

# A narrow table: what curation, the console and facts ask for without reading an event.
TRAJECTORIES = Table(
    "trajectories",
    (
        _KEY,
        *_columns("string", "tenant trajectory_id agent task_id family instruction subject environment parent_trajectory"),
        *_columns("int64", "resume_step attempt"),
        *_columns("json", "policies assignment"),
        *_columns("string", "status status_reason outcome outcome_source"),
        *_columns("bool", "headless valid_tools"),
        *_columns("float64", "reward latency_ms"),
        # The intrinsic scores, and what they come from.
        *_columns("int64", "steps error_steps repeated_calls format_errors input_tokens output_tokens superseded"),
        *_columns("int64", "cost_micro_usd requests slow_requests fallbacks"),
        *_columns("int64", "first_occurred_at last_occurred_at"),
        # Compare-and-set, and where the events are.
        *_columns("string", "content base_content"),
        *_columns("strings", "chunks"),
        Column("revision", "int64"),
        # The values that this revision replaced: facts carry them, and a fact sent again must say the same.
        *_columns("int64", "previous_revision"),
        *_columns("string", "previous_outcome"),
        *_columns("float64", "previous_reward"),
        # Bookkeeping: outside every hash.
        *_columns("int64", "partition first_offset last_offset appended_at stored_at schema_version"),
    ),
)

# Immutable chunks of events, as `event_set.pack` writes them.
TRANSCRIPTS = Table(
    "transcripts",
    (_KEY, Column("trajectory", "string"), Column("events", "binary"), Column("count", "int64"), Column("stored_at", "int64")),
)


def _ledger(name: str) -> Table:
    """A table that several processes decide in: `scope` is what its rows are listed by, `data` whatever its owner keeps.

    Compare-and-set by `content` (of any change) or by `state` (of a step in its life): the writer puts the value that it
    decided on into `base_content` or `base_state`. Times are microseconds since the epoch.
    """
    return Table(
        name,
        (
            _KEY,
            *_columns("string", "scope state base_state"),
            Column("data", "json"),
            *_columns("string", "content base_content"),
            *_columns("int64", "created_at updated_at"),
        ),
    )


WINDOWS = _ledger("windows")  # scope: the lineage
LEADERS = _ledger("leaders")  # scope: tenant/family
STUDENTS = _ledger("students")  # scope: the lineage
EVALUATIONS = _ledger("evaluations")  # scope: the student
TEACHER_RUNS = _ledger("teacher_runs")  # scope: the family
LEASES = _ledger("leases")  # scope: what is leased (maintenance, a flush)

TABLES: dict[str, Table] = {
    table.name: table for table in (TRAJECTORIES, TRANSCRIPTS, WINDOWS, LEADERS, STUDENTS, EVALUATIONS, TEACHER_RUNS, LEASES)
}

HASHED = ("key", "content", "status", "outcome", "steps", "error_steps", "repeated_calls", "format_errors", "input_tokens", "output_tokens")
"""What the table hash covers: no offset, history or wall time."""


def ledger_row(key: str, scope: str, state: str, base: str, data: Any, created: int, updated: int) -> dict[str, Any]:
    """A row of a ledger's table whose only change is that of its state, from `base` to `state`. Times are microseconds since the epoch."""
    return {
        "key": key, "scope": scope, "state": state, "base_state": base, "data": data,
        "content": state, "base_content": base, "created_at": created, "updated_at": updated,
    }  # fmt: skip


def table(name: str) -> Table:
    """The table of that name.

    Raises:
        UsageError: there is none.
    """
    try:
        return TABLES[name]
    except KeyError:
        raise UsageError(f"there is no table {name}", fix=f"Tables: {', '.join(TABLES)}.") from None
