"""`stillhouse students list|show`."""

from typing import Annotated

import msgspec
import typer

from stillhouse.console import context, output
from stillhouse.schemas.errors import PermanentError, UsageError
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
