"""`stillhouse dlq list|show|retry`."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated

import typer

from stillhouse.console import context, output
from stillhouse.schemas.errors import UsageError
from stillhouse.streams import dlq
from stillhouse.streams.dlq import Entry

group = typer.Typer()

COLUMNS = ["key", "stage", "reason", "bytes", "source", "at", "retried"]
SHOWN_BYTES = 2000


def _row(entry: Entry) -> output.Row:
    at = datetime.fromtimestamp(entry.at / 1e6, UTC).isoformat(timespec="seconds")
    fields = {"key": entry.key, "stage": entry.stage, "reason": entry.reason, "detail": entry.detail, "source": entry.source}
    return {**fields, "bytes": len(entry.value), "at": at, "retried": entry.retried}


@group.command("list")
def list_(
    state: context.StateOption = None,
    config: context.ConfigOption = None,
    reason: Annotated[str | None, typer.Option(help="Only this reason.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many; 0 for all.", min=0)] = 50,
    json: context.JsonOption = False,
) -> None:
    """What could not become part of a row, newest first."""
    items = [_row(e) for e in dlq.entries(context.load(state, config).kafka, reason=reason, limit=limit or None)]
    output.show_list(items, COLUMNS, as_json=json, empty="Nothing: every record became part of a row.")


@group.command()
def show(
    key: Annotated[str, typer.Argument(help="topic/partition/offset, as `list` prints it.")],
    state: context.StateOption = None,
    config: context.ConfigOption = None,
    json: context.JsonOption = False,
) -> None:
    """One record: why it is here, its headers, and its first bytes."""
    entry = dlq.show(context.load(state, config).kafka, key)
    headers = {name: None if value is None else value.decode(errors="replace") for name, value in entry.headers}
    source_key = entry.source_key.decode(errors="replace") if entry.source_key is not None else None
    value = entry.value[:SHOWN_BYTES]
    output.show_object({**_row(entry), "source_key": source_key, "headers": headers, "value": repr(value)[2:-1]}, as_json=json)


@group.command()
def retry(
    keys: Annotated[list[str] | None, typer.Argument(help="Keys, as `list` prints them.", show_default=False)] = None,
    state: context.StateOption = None,
    config: context.ConfigOption = None,
    reason: Annotated[str | None, typer.Option(help="All of this reason.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that were not retried yet.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Also those that were retried before.")] = False,
    json: context.JsonOption = False,
) -> None:
    """Send the original bytes once more; a record that was stored after all adds nothing."""
    sent = dlq.retry(context.load(state, config).kafka, _chosen(keys or [], reason, everything), again=again)
    output.show_object({"retried": sent}, as_json=json)


def _chosen(keys: list[str], reason: str | None, everything: bool) -> Callable[[Entry], bool]:
    if sum((bool(keys), reason is not None, everything)) != 1:
        raise UsageError("say which records", where="stillhouse dlq retry", fix="Give keys, or --reason, or --all.")
    return lambda entry: everything or entry.key in keys or (reason is not None and entry.reason == reason)
