"""Runs a training job in a process of its own and shows how far it is."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from stillhouse.console import output
from stillhouse.console.context import Context
from stillhouse.trainer import child
from stillhouse.trainer.disk import names_full_disk

Event = child.Event


async def job(
    loaded: Context, overrides: Mapping[str, object], options: Sequence[str], on_event: Callable[[Event], None] = lambda event: None
) -> Event:
    """Run one window to its end; its result. Raises as `child.run_job`, and RetryableError where there is no room for its log."""
    settings = [f"--set={key}={value}" for key, value in overrides.items() if value is not None]
    servers = loaded.kafka.bootstrap_servers if loaded.has_broker else None
    argv = child.command(loaded.state, loaded.config.path, servers, [*settings, *options])
    with names_full_disk(loaded.state):
        return await child.run_job(argv, loaded.config.state_dir("logs") / "trainer.log", on_event)


def run_job(loaded: Context, overrides: Mapping[str, object], options: Sequence[str], *, quiet: bool) -> Event:
    """`job` for the command line, with a progress bar. Raises as `job`."""
    with output.progress("claiming", quiet=quiet) as tick:

        def show(event: Event) -> None:
            tick(int(event.get("step", 0)), describe(event), event.get("steps"))

        return asyncio.run(job(loaded, overrides, options, show))


def describe(event: Event) -> str:
    """What happened, in a few words."""
    if event["event"] == "train" and event.get("loss") is not None:
        return f"{event['kind']} {event['step']}/{event['steps']}, loss {event['loss']:.3f}"
    if event["event"] == "stage":
        return f"curating: {event['stage']} keeps {event['kept']}"
    if event["event"] == "evaluate":
        return f"validating: {event['done']}/{event['total']}, {event['succeeded']} solved"
    if event["event"] == "shadow":
        return f"shadow: {event['done']}/{event['total']}"
    return str(event.get("state") or event.get("kind") or event["event"])
