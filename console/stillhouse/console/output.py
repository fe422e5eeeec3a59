"""What a person or a script sees: tables, one JSON object, progress, errors with exit codes."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import orjson
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from stillhouse.schemas.errors import StillhouseError

# Into a file or a pipe a table keeps its columns: what cuts it there is not the width of anybody's window.
WIDE = 200
_UNBOUNDED = 10_000
out = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
err = Console(stderr=True, highlight=False)

Row = dict[str, Any]


def print_error(error: StillhouseError) -> None:
    """What, where, and what to do, on standard error."""
    err.print(f"[bold red]error[/]: {_plain(error.what)}", soft_wrap=True)
    if error.where:
        err.print(f"  where: {_plain(error.where)}", soft_wrap=True)
    if error.fix:
        err.print(f"  to do: {_plain(error.fix)}", soft_wrap=True)


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode() + "\n")


def show_list(items: Sequence[Row], columns: Sequence[str], *, as_json: bool, empty: str) -> None:
    """A table, or `{"items": […]}`; with nothing to show, a sentence that says what would bring something."""
    if as_json:
        print_json({"items": list(items)})
        return
    if not items:
        out.print(_plain(empty))
        return
    print_table(table([[item.get(c) for c in columns] for item in items], columns))


def print_table(view: Table) -> None:
    """A table with every row on one line: the terminal wraps what is wider than it, and a name can still be copied whole."""
    needed = Measurement.get(out, out.options.update(max_width=_UNBOUNDED), view).maximum
    console = out if needed <= out.width else Console(file=out.file, highlight=False, width=needed, force_terminal=out.is_terminal)
    console.print(view)


def show_object(value: Row, *, as_json: bool) -> None:
    """One object: its fields a line each, or as JSON."""
    if as_json:
        print_json(value)
        return
    grid = Table.grid(padding=(0, 2))
    for key, field in value.items():
        grid.add_row(f"[bold]{_plain(key)}[/]", _cell(field))
    out.print(grid)


def table(rows: Sequence[Sequence[Any]], columns: Sequence[str], wrapped: Sequence[str] = ()) -> Table:
    """A plain table; numbers to the right. Only the `wrapped` columns may take several lines."""
    view = Table(box=None, pad_edge=False, header_style="bold")
    for place, column in enumerate(columns):
        numbers = bool(rows) and all(isinstance(r[place], int | float) or r[place] is None for r in rows)
        view.add_column(column, justify="right" if numbers else "left", no_wrap=column not in wrapped)
    for row in rows:
        view.add_row(*(_cell(value) for value in row))
    return view


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_cell(v) for v in value) or "-"
    if isinstance(value, dict):
        inner = ((_plain(str(k)), f"({_cell(v)})" if isinstance(v, dict) else _cell(v)) for k, v in value.items())
        return ", ".join(f"{name} {text}" for name, text in inner) or "-"
    return _plain(str(value))


class Tick(Protocol):
    """Says how far something is: how many are done, and what it is doing and how many there are when that changes."""

    def __call__(self, done: int, what: str | None = None, total: int | None = None) -> None:
        """Show it."""
        ...


@contextmanager
def progress(what: str, total: int | None = None, *, quiet: bool = False) -> Iterator[Tick]:
    """A progress bar on standard error, in a terminal; yields what moves it."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, disable=quiet or not err.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=total)

        def tick(done: int, what: str | None = None, total: int | None = None) -> None:
            changes = {name: value for name, value in (("description", what), ("total", total)) if value is not None}
            bar.update(task, completed=done, **changes)  # type: ignore[arg-type]  # rich types each keyword, not a dict of them

        yield tick
