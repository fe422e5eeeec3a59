"""`python -m stillhouse.streams.relabel`: one labeller as a process. Prints one JSON line when it reads."""

import argparse
import json
import os
import signal
import threading
from collections.abc import Sequence

from stillhouse.schemas.errors import StillhouseError
from stillhouse.schemas.labels import RELABELLER
from stillhouse.sdk.client import Client
from stillhouse.sdk.config import Config
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.sdk.process import process_parser
from stillhouse.sdk.routes import RouteSettings
from stillhouse.sdk.runner import LEASE_S
from stillhouse.sdk.store import Store, StoreSettings
from stillhouse.streams import logs
from stillhouse.streams.relabel.labeller import Labeller
from stillhouse.streams.signals.settings import SignalsSettings

log = logs.logger(__name__)


def _serve(args: argparse.Namespace, stop: threading.Event) -> None:
    config = Config.load(args.config, state=args.state, overrides={"kafka.bootstrap_servers": args.bootstrap_servers})
    kafka, where = config.section("kafka", KafkaSettings), config.section("store", StoreSettings).location(config.state)
    with Client(settings=kafka, spool=config.state_dir("spool") / "relabel", agent=RELABELLER, way_in="relabel") as client:
        routes = config.sections("routes", RouteSettings)
        labeller = Labeller(client, kafka, lambda: Store.open(where), config.section("signals", SignalsSettings), routes, args.lease)
        print(json.dumps({"ready": "relabel", "pid": os.getpid()}), flush=True)
        labeller.run(stop)


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM."""
    logs.configure()
    parser = process_parser("stillhouse.streams.relabel", "Ask the teacher at the states that students failed from.", metrics=False)
    parser.add_argument("--lease", type=float, default=LEASE_S, help="seconds after which the claim of a labeller that is gone is lost")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        _serve(parser.parse_args(argv), stop)
    except StillhouseError as error:
        log.error("relabel ends", error=str(error), kind=type(error).__name__)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
