"""`stillhouse students list|show|release|revoke`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from stillhouse.console import context, decisions, output
from stillhouse.schemas.errors import GateError, PermanentError, UsageError
from stillhouse.schemas.facts import StudentStage, StudentState
from stillhouse.schemas.route_state import RouteStates
from stillhouse.trainer import students
from stillhouse.trainer.manifest import load_manifest

group = typer.Typer()

COLUMNS = ["name", "window", "parent", "mode", "recipe", "rows", "supervised_tokens", "validation_loss", "success"]


@group.command("list")
def list_(state: context.StateOption = None, json: context.JsonOption = False) -> None:
    """Registered students, oldest first."""
    folder = context.load(state).config.state_dir("students")
    items = []
    for manifest in students.list_students(folder):
        fields = {name: getattr(manifest, name) for name in COLUMNS if name != "success"}
        items.append({**fields, "success": manifest.evaluation.get("success")})
    output.show_list(items, COLUMNS, as_json=json, empty="No students yet. `stillhouse windows run` trains one.")


@group.command()
def show(
    name: Annotated[str, typer.Argument(help="A student's name, as `list` prints it.")],
    state: context.StateOption = None,
    json: context.JsonOption = False,
) -> None:
    """One student: its lineage down to offsets, its training, the hash of every file; every file is checked."""
    folder = context.load(state).config.state_dir("students") / name
    if not folder.is_dir():
        raise UsageError("no such student", where=name, fix="See `stillhouse students list`.")
    try:
        students.verify(folder)
        intact = "all files are as they were registered"
    except PermanentError as error:
        intact = str(error)
    manifest = load_manifest(folder)
    output.show_object({**msgspec.to_builtins(manifest, str_keys=True), "folder": str(folder), "intact": intact}, as_json=json)


@group.command()
def release(
    name: Annotated[str, typer.Argument(help="A student's name, as `list` prints it.")],
    route: Annotated[str, typer.Option("--route", help="Where it is to serve.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; it is kept in the log.")] = "",
    skip_gate: Annotated[bool, typer.Option("--skip-gate", help="Without the offline gate; needs a reason.")] = False,
    state: context.StateOption = None,
    config: context.ConfigOption = None,
    json: context.JsonOption = False,
) -> None:
    """Put a student up for a canary; the controller starts it when no other one runs."""
    loaded = context.load(state, config)
    if skip_gate and not reason.strip():
        raise UsageError("--skip-gate needs a reason", where="--reason", fix="Say why: it is kept in the log.")
    digest = _intact(loaded.config.state_dir("students") / name)

    def decide(states: RouteStates) -> StudentState:
        now = states.of(route)
        if now.terminal(name) or name in (now.champion, now.canary):
            fix = "Train another one, or register it under a new name." if now.terminal(name) else "See `stillhouse canary status`."
            raise GateError(f"{name} is {now.stages[name].value}", where=route, fix=fix)
        why = reason or "released by hand"
        return decisions.by_hand(now, name, StudentStage.SHADOW, why, manifest_sha256=digest, skip_gate=skip_gate)

    decisions.show(decisions.publish(loaded.kafka, decide), as_json=json)


def _intact(folder: Path) -> str:
    """The hash of a student's manifest, once all of its files were checked."""
    if not folder.is_dir():
        raise UsageError("no such student", where=folder.name, fix="See `stillhouse students list`.")
    try:
        students.verify(folder)
    except PermanentError as error:
        raise GateError(error.what, where=error.where, fix="Do not serve it.") from error
    return students.manifest_sha256(folder)


@group.command()
def revoke(
    name: Annotated[str, typer.Argument(help="A student's name.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; it is kept in the log.")],
    state: context.StateOption = None,
    config: context.ConfigOption = None,
    json: context.JsonOption = False,
) -> None:
    """Take a student out wherever it serves or waits, for ever: of a champion the teacher takes over."""
    kafka = context.load(state, config).kafka
    known = [one for one in decisions.read(kafka).states.routes.values() if name in one.stages]
    if not known:
        raise UsageError("no route knows this student", where=name, fix="See `stillhouse canary status`.")
    routes = [one.route for one in known if not one.terminal(name)]
    if not routes:
        raise GateError(f"{name} is {known[0].stages[name].value} already", where=known[0].route)

    def decide(route: str, states: RouteStates) -> StudentState:
        now = states.of(route)
        if now.terminal(name):
            raise GateError(f"{name} is {now.stages[name].value} already", where=route)
        return decisions.by_hand(now, name, StudentStage.REVOKED, reason)

    items = [decisions.row(*decisions.publish(kafka, partial(decide, route))) for route in routes]
    output.show_list(items, ["route", "student", "stage", "reason", "champion", "canary"], as_json=json, empty="")
