"""`stillhouse topics apply`."""

from typing import Annotated

import typer

from stillhouse.console import context, output
from stillhouse.schemas.topics import DEFAULT_PARTITIONS
from stillhouse.sdk.kafka import apply_topics

group = typer.Typer()


@group.callback()
def _group() -> None:
    """Keep `apply` a sub-command although it is the only one."""


@group.command()
def apply(
    state: context.StateOption = None,
    config: context.ConfigOption = None,
    partitions: Annotated[int, typer.Option(help="Partitions of a topic that is made now; fixed from then on.")] = DEFAULT_PARTITIONS,
    replication: Annotated[int, typer.Option(help="Replicas of a topic that is made now.")] = 1,
    json: context.JsonOption = False,
) -> None:
    """Make the topics that are missing. What exists is compared and never changed."""
    results = apply_topics(context.load(state, config).kafka, partitions=partitions, replication=replication)
    items = [{"topic": r.name, "status": r.status, "drift": list(r.drift)} for r in results]
    output.show_list(items, ["topic", "status", "drift"], as_json=json, empty="no topics")
