"""`stillhouse broker`: the embedded broker by itself."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from stillhouse.broker import server


def command(
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 9392,
    dir: Annotated[Path, typer.Option(help="Where the log lies; one broker a folder.")] = Path(".stillhouse/broker"),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    fsync: Annotated[bool, typer.Option(help="Acknowledge after the disk has it; off for tests only.")] = True,
    expose: Annotated[
        bool, typer.Option("--expose", help="Allow an address that other machines reach. There is no authentication.")
    ] = False,
) -> None:
    """One broker that speaks Kafka's protocol, for laptops, demos and tests; not a production engine.

    Prints one line of JSON with `bootstrap_servers` when it is ready, and stays in the foreground.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    raise typer.Exit(server.run_broker(server.Broker(dir, host=host, port=port, fsync=fsync, expose=expose)))
