"""`stillhouse up`: every process of Stillhouse on this machine."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from stillhouse.console import context, output
from stillhouse.console.stack import record as records
from stillhouse.console.stack.parts import ANY_PORT, StackSettings
from stillhouse.console.stack.stack import Stack, StackEvent
from stillhouse.schemas.errors import PermanentError
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.sdk.routes import RouteSettings
from stillhouse.trainer import models

START_SECONDS = 240


def command(
    state: context.StateOption = None,
    config: context.ConfigOption = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return when all is ready; stop it with `stillhouse down`.")] = False,
    any_port: Annotated[bool, typer.Option("--any-port", help="Take free ports instead of 9392, 8484 to 8486 and 9490 to 9493.")] = False,
    model: Annotated[
        Path | None, typer.Option(help="Folder of the student's base model [default: the fetched one, if any].", show_default=False)
    ] = None,
    json: context.JsonOption = False,
) -> None:
    """Start the whole loop on this machine and keep it up: broker, ingest, student server, gateway, canary, signals, trainer, page."""
    loaded = context.load(state, config)
    if detach:
        show(loaded.state, _detach(loaded.state, config, any_port, model), as_json=json)
        return
    settings = stack_settings(loaded, any_port=any_port, model=model)
    asyncio.run(_foreground(loaded.state, settings, lambda record: show(loaded.state, record, as_json=json)))


def stack_settings(loaded: context.Context, *, any_port: bool, model: Path | None) -> StackSettings:
    """What a stack of this configuration runs with."""
    ports = ANY_PORT if any_port else StackSettings()
    return StackSettings(
        bootstrap_servers=loaded.external,
        prefix=loaded.config.section("kafka", KafkaSettings).prefix,
        broker_port=ports.broker_port,
        gateway_port=ports.gateway_port,
        admin_port=ports.admin_port,
        page_port=ports.page_port,
        metrics_port=ports.metrics_port,
        model=model or models.cached(),
        routes=bool(loaded.config.sections("routes", RouteSettings)),
        config=loaded.config.path,
    )


def _describe(event: StackEvent) -> None:
    output.err.print(f"  {event.part:<10} {event.what}{'  ' + event.detail if event.detail else ''}", soft_wrap=True)


async def _foreground(state: Path, settings: StackSettings, announce: Callable[[records.StackRecord], None]) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    stack = Stack(state, settings, on_event=_describe)
    starting = asyncio.create_task(stack.start())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return
    announce(starting.result())
    failing = asyncio.create_task(stack.wait())
    try:
        await asyncio.wait({failing, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await stack.stop()
    if failing.done():
        failing.result()
    failing.cancel()


def _detach(state: Path, config: Path | None, any_port: bool, model: Path | None) -> records.StackRecord:
    log = state / "logs" / "up.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    options = [
        *(("--config", str(config)) if config else ()),
        *(("--any-port",) if any_port else ()),
        *(("--model", str(model)) if model else ()),
    ]
    with log.open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "stillhouse.console", "up", "--state", str(state), *options],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + START_SECONDS
    with output.progress("starting"):
        while time.monotonic() < deadline:
            record = records.read(state)
            if record and record.supervisor.pid == child.pid:
                return record
            try:
                child.wait(timeout=0.1)
                break
            except subprocess.TimeoutExpired:
                continue
    if child.poll() is None:
        child.terminate()
    raise PermanentError("the stack did not start", where=str(log), fix=log.read_text(errors="replace")[-2000:].strip())


def show(state: Path, record: records.StackRecord, *, as_json: bool) -> None:
    """Say where everything is."""
    output.show_object(
        {
            "state": str(state),
            "bootstrap_servers": record.bootstrap_servers,
            "gateway": record.gateway or "not started: no route is named ([routes.<name>], docs/gateway.md)",
            "admin": record.admin,
            "status page": record.page,
            "student server": record.student or "not started: no base model here (stillhouse models fetch)",
            "metrics": record.metrics,
            "pids": {name: p.pid for name, p in record.pids.items()},
        }
        if not as_json
        else {"state": str(state), **_json(record)},
        as_json=as_json,
    )


def _json(record: records.StackRecord) -> dict[str, object]:
    import msgspec

    return dict(msgspec.to_builtins(record))
