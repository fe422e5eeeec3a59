"""`stillhouse import`: recorded runs through the SDK, the broker and ingest."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from stillhouse.console import context, output
from stillhouse.console.importing import Sent, send, wait_for_rows
from stillhouse.console.stack.local import parts_of
from stillhouse.console.stack.parts import ANY_PORT
from stillhouse.console.stack.stack import Stack
from stillhouse.schemas.errors import UsageError
from stillhouse.schemas.events import PolicyRole
from stillhouse.sdk.importers import IMPORTERS, Importer


def command(
    source: Annotated[str, typer.Argument(help=f"What wrote the file: {', '.join(sorted(IMPORTERS))}.")],
    path: Annotated[Path, typer.Argument(help="The file or folder to import.")],
    state: context.StateOption = None,
    config: context.ConfigOption = None,
    tenant: Annotated[str, typer.Option(help="Whose runs they are.")] = "default",
    role: Annotated[
        str | None, typer.Option(help="Who acted, where the file does not say: teacher, student, human.", show_default=False)
    ] = None,
    model: Annotated[str, typer.Option(help="The model that acted, where the file does not say.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Return when every run is a stored row.")] = False,
    timeout: Annotated[float, typer.Option(help="With --wait: seconds to wait for the rows.")] = 300.0,
    json: context.JsonOption = False,
) -> None:
    """Send recorded runs the way a live agent's go. Importing a file twice changes nothing.

    Where no stack runs and no broker is configured, broker and ingest are started for the time of the import.
    """
    if source not in IMPORTERS:
        raise UsageError(f"no importer is called {source}", fix=f"There are: {', '.join(sorted(IMPORTERS))}.")
    if not path.exists():
        raise UsageError("no such file or folder", where=str(path))
    importer = IMPORTERS[source]
    loaded = context.load(state, config)
    with _broker(loaded) as (reachable, borrowed):
        with output.progress(f"sending {path.name}", quiet=json) as tick:
            sent = send(
                importer.read(path, tenant=tenant, role=_role(role), model=model), reachable.kafka, loaded.config.state_dir("spool"), tick
            )
        if wait or borrowed:
            with output.progress("waiting for rows", total=len(sent.revisions), quiet=json) as tick:
                wait_for_rows(reachable.store(), sent.revisions, timeout, tick)
        _report(importer, sent, reachable, waited=wait or borrowed, as_json=json)


def _role(text: str | None) -> PolicyRole | None:
    if text is None:
        return None
    if text not in (r.value for r in PolicyRole):
        raise UsageError(f"no such role: {text}", where="--role", fix=f"One of: {', '.join(r.value for r in PolicyRole)}.")
    return PolicyRole(text)


@contextmanager
def _broker(loaded: context.Context) -> Iterator[tuple[context.Context, bool]]:
    """A context whose broker answers; True when broker and ingest were started for this import only."""
    if loaded.has_broker:
        yield loaded, False
        return
    output.err.print("no stack runs here: starting broker and ingest for this import")
    parts = tuple(p for p in parts_of(loaded.state, ANY_PORT) if p.name in ("broker", "ingest"))
    with asyncio.Runner() as runner:
        stack = Stack(loaded.state, ANY_PORT, parts)
        runner.run(stack.start())
        try:
            yield loaded, True
        finally:
            runner.run(stack.stop())


def _report(importer: Importer, sent: Sent, loaded: context.Context, *, waited: bool, as_json: bool) -> None:
    result: dict[str, object] = {
        "trajectories": len(sent.revisions),
        "events": sent.events,
        "assistant_messages": sent.steps,
        "successes": sent.successes,
        "not_carried": dict(Counter(importer.report)),
    }
    if waited:
        result["table_hash"] = loaded.store().table_hash()
    output.show_object(result, as_json=as_json)
