"""`stillhouse doctor`: is this machine and this state folder fit for the work, and what to do if not."""

import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import typer
from rich.markup import escape

from stillhouse.console import context, output
from stillhouse.console.stack import record as records
from stillhouse.schemas.errors import ExitCode, StillhouseError
from stillhouse.sdk.store import Store

Grade = Literal["ok", "note", "bad"]
FREE_BYTES = 5 * 2**30
MOST_COMPARED = 1000  # runs of one task are compared word for word, up to so many
PACKAGES = {
    "streams": ("aiokafka", "lancedb", "lance"),
    "trainer": ("torch", "transformers", "trl", "peft"),
    "serving": ("aiohttp", "tokenizers"),
}
MARKS = {"ok": "[green]ok[/]  ", "note": "[yellow]note[/]", "bad": "[red]bad[/] "}


class Finding(NamedTuple):
    """One thing that was looked at."""

    grade: Grade
    what: str
    fix: str = ""


def command(state: context.StateOption = None, config: context.ConfigOption = None, json: context.JsonOption = False) -> None:
    """Check packages, disk, settings, state folder, broker, doubly captured runs and the log's size; exit code 1 if something is bad."""
    found = list(examine(state, config))
    if json:
        output.print_json({"items": [f._asdict() for f in found]})
    else:
        for f in found:
            output.out.print(f"{MARKS[f.grade]} {escape(f.what)}{escape(f'  → {f.fix}') if f.fix else ''}", soft_wrap=True)
    if any(f.grade == "bad" for f in found):
        raise typer.Exit(ExitCode.FAILED)


def examine(state: context.StateOption, config: context.ConfigOption) -> Iterator[Finding]:
    """All findings, in the order a newcomer meets the things."""
    yield Finding("ok", f"Python {sys.version.split()[0]}")
    yield from _packages()
    try:
        loaded = context.load(state, config)
    except StillhouseError as error:
        yield Finding("bad", str(error))
        return
    for check in (_disk, _broker, _model, _store):
        yield from _guarded(check, loaded)


def _guarded(check: Callable[[context.Context], Iterator[Finding]], loaded: context.Context) -> Iterator[Finding]:
    try:
        yield from check(loaded)
    except StillhouseError as error:
        yield Finding("bad", f"{error.what}{f' ({error.where})' if error.where else ''}", error.fix)


def _packages() -> Iterator[Finding]:
    for extra, names in PACKAGES.items():
        missing = [name for name in names if importlib.util.find_spec(name) is None]
        fix = f"pip install 'stillhouse[{extra}]'"
        yield (
            Finding("note", f"{extra}: {', '.join(missing)} not installed", fix)
            if missing
            else Finding("ok", f"{extra}: packages installed")
        )


def _disk(loaded: context.Context) -> Iterator[Finding]:
    folder = next(p for p in (loaded.state.resolve(), *loaded.state.resolve().parents) if p.exists())
    free = shutil.disk_usage(folder).free
    text = f"{free / 2**30:.0f} GiB free at {folder}"
    yield Finding("ok", text) if free > FREE_BYTES else Finding("bad", text, "Make room, or put the state elsewhere with --state.")


def _broker(loaded: context.Context) -> Iterator[Finding]:
    record = records.read(loaded.state)
    if record and not record.supervisor.alive:
        yield Finding("bad", "the stack's supervisor was killed", "`stillhouse up` ends what it left and starts anew.")
    if not loaded.has_broker:
        yield Finding("note", "no stack runs here and no Kafka is configured", "stillhouse up --detach")
        return
    from stillhouse.console.log_size import measure

    size = measure(loaded.kafka)
    yield Finding("ok", f"broker answers at {loaded.kafka.bootstrap_servers}: {size.events} events")
    if size.missing:
        yield Finding("bad", f"topics are missing: {', '.join(size.missing)}", "stillhouse topics apply")
    if size.gib_a_day is not None:
        yield Finding("note", f"agent.events grows by about {size.gib_a_day:.3g} GiB a day, kept for {size.days:g} days")


def _model(loaded: context.Context) -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        return
    from stillhouse.trainer import models

    folder = models.cached()
    yield Finding("ok", f"base model at {folder}") if folder else Finding("note", "no base model fetched", "stillhouse models fetch")


def _store(loaded: context.Context) -> Iterator[Finding]:
    if importlib.util.find_spec("lancedb") is None:
        return
    store = loaded.store()
    rows = store.trajectories(columns=["key", "tenant", "task_id", "instruction", "status", "steps"])
    yield Finding("ok", f"{len(rows)} trajectories stored")
    if failed := [r["key"] for r in rows if r["status"] == "failed"]:
        yield Finding("bad", f"{len(failed)} rows could not be folded or scored, for example {failed[0]}", "stillhouse dlq list")
    if doubles := _doubles(store, rows):
        fix = "Send x-stillhouse-trajectory from the agent, so that both ways in share the id."
        yield Finding("note", f"{len(doubles)} runs were probably captured twice, for example {doubles[0]}", fix)


def _doubles(store: Store, rows: list[output.Row]) -> list[str]:
    """Keys of runs whose whole conversation another run of the same task has too, word for word."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for row in rows:
        groups.setdefault((row["tenant"], row["task_id"], row["instruction"], row["steps"]), []).append(row["key"])
    suspects = [key for keys in groups.values() if len(keys) > 1 for key in keys][:MOST_COMPARED]
    seen: set[tuple[str, str]] = set()
    found = []
    for key, run in store.load(suspects).items():
        said = (run.tenant, "\n".join(f"{m.role} {m.text} {[(c.name, c.arguments) for c in m.tool_calls]}" for m in run.messages()))
        if said in seen:
            found.append(key)
        seen.add(said)
    return found
