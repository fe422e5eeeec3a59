"""`stillhouse students list|show|shadow|release|revoke`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from stillhouse.console import context, decisions, output, shadowing
from stillhouse.schemas.errors import GateError, PermanentError, UsageError
from stillhouse.schemas.facts import StudentStage, StudentState
from stillhouse.schemas.route_state import RouteStates
from stillhouse.trainer import shadow as shadows
from stillhouse.trainer import students, windows
from stillhouse.trainer.decisions import NOBODY, read_erasures
from stillhouse.trainer.manifest import load_manifest
from stillhouse.trainer.models import resolve
from stillhouse.trainer.settings import TrainerSettings
from stillhouse.trainer.shadow_job import as_served

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
    """One student: its lineage down to offsets, its training, its shadow, the hash of every file; every file is checked."""
    config = context.load(state).config
    folder = _folder(config.state_dir("students"), name)
    try:
        students.verify(folder)
        intact = "all files are as they were registered"
    except PermanentError as error:
        intact = str(error)
    manifest = load_manifest(folder)
    found = shadows.load(config.state_dir("run"), folder)
    shown = {**msgspec.to_builtins(manifest, str_keys=True), "folder": str(folder), "intact": intact}
    output.show_object({**shown, "shadow": shadowing.brief(found) if found else None}, as_json=json)


@group.command()
def shadow(
    name: Annotated[str, typer.Argument(help="A student's name, as `list` prints it.")],
    steps: Annotated[int, typer.Option(help="Steps of the teacher to sample at most.", min=1)] = 200,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 1,
    answer_tokens: Annotated[int, typer.Option(help="Tokens that one answer may have.", min=1)] = 256,
    state: context.StateOption = None,
    config: context.ConfigOption = None,
    json: context.JsonOption = False,
) -> None:
    """Ask a student at stored steps of the teacher that it has not learned from; offline, and nothing is served."""
    loaded = context.load(state, config)
    folder = _folder(loaded.config.state_dir("students"), name)
    student, store = students.load(folder), loaded.store()
    given = shadows.ShadowSettings(steps=steps, seed=seed, answer_tokens=answer_tokens)
    settings = as_served(loaded.config, student.manifest.lineage, given)
    window = windows.show(store, student.manifest.window)
    base = resolve(window.plan.terms.model if window.plan.terms else loaded.config.section("trainer", TrainerSettings).model)
    erasures = read_erasures(loaded.kafka) if loaded.has_broker else NOBODY
    with shadowing.server(loaded, base) as (server, alone), output.progress("asking", quiet=json) as tick:
        report = shadows.shadow(
            student, store, server, base, settings, alone=alone, erasures=erasures, progress=lambda done, total: tick(done, None, total)
        )
    path = shadows.save(report, loaded.config.state_dir("run"))
    if json:
        output.print_json(msgspec.to_builtins(report))
        return
    shadowing.print_families(report)
    output.show_object({**shadowing.brief(report), "report": str(path)}, as_json=False)


def _folder(students_folder: Path, name: str) -> Path:
    folder = students_folder / name
    if not folder.is_dir():
        raise UsageError("no such student", where=name, fix="See `stillhouse students list`.")
    return folder


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
    _folder(folder.parent, folder.name)
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
