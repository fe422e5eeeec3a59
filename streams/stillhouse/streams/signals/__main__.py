"""`python -m stillhouse.streams.signals`: one worker as a process. Prints one JSON line when it reads."""

import argparse
import asyncio
import json
import logging
import os
import signal
import socket
from collections.abc import Sequence

from stillhouse.schemas.errors import StillhouseError
from stillhouse.sdk.config import Config
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.sdk.process import process_parser
from stillhouse.sdk.routes import RouteSettings
from stillhouse.sdk.store import Store, StoreSettings
from stillhouse.sdk.window_settings import WindowSettings
from stillhouse.streams import logs
from stillhouse.streams.health import HealthServer
from stillhouse.streams.ingest.steps import from_environment
from stillhouse.streams.instruments import Instruments
from stillhouse.streams.lock import hold
from stillhouse.streams.signals.settings import SignalsSettings
from stillhouse.streams.signals.worker import Sections, Worker

log = logs.logger(__name__)


async def _serve(args: argparse.Namespace) -> None:
    config = Config.load(args.config, state=args.state, overrides={"kafka.bootstrap_servers": args.bootstrap_servers})
    sections = Sections(
        config.section("kafka", KafkaSettings),
        config.section("signals", SignalsSettings),
        config.section("window", WindowSettings),
        config.sections("routes", RouteSettings),
    )
    store = Store.open(config.section("store", StoreSettings).location(config.state))
    instruments = Instruments("stillhouse_signals_")
    datadir = config.state_dir("run") / "faust"
    # The name of the process before it: what that one leased and was killed with, this one need not wait for.
    ordinal = hold(config.state_dir("run"), "signals")
    worker = Worker(
        sections, store, f"{socket.gethostname()}-{ordinal.number}", str(datadir), instruments, reached=from_environment(os.environ)
    )
    health = HealthServer(instruments, worker.healthy, worker.ready)
    address = await health.start(args.metrics_host, args.metrics_port)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.stop)

    def joined() -> None:
        print(json.dumps({"ready": "signals", "pid": os.getpid(), "url": address, "metrics": f"{address}/metrics"}), flush=True)

    try:
        await worker.start()
        await worker.run(joined)
    finally:
        await worker.close()
        await health.stop()
        ordinal.release()


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM."""
    logs.configure()
    for library in ("faust", "mode"):
        logging.getLogger(library).setLevel(logging.WARNING)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a full disk is an error of a write, not the end of the process
    try:
        asyncio.run(_serve(process_parser("stillhouse.streams.signals", "Ask for windows and for the teacher.").parse_args(argv)))
    except StillhouseError as error:
        log.error("signals ends", error=str(error), kind=type(error).__name__)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
