"""`python -m stillhouse.streams.ingest`: one worker as a process. Prints one JSON line when it reads."""

import argparse
import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import Sequence

from stillhouse.schemas.errors import StillhouseError
from stillhouse.sdk.config import Config
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.sdk.process import process_parser
from stillhouse.sdk.routes import RouteSettings
from stillhouse.sdk.store import Store, StoreSettings
from stillhouse.streams import logs
from stillhouse.streams.health import HealthServer
from stillhouse.streams.ingest.chores import Chores
from stillhouse.streams.ingest.slow import SlowLimits
from stillhouse.streams.ingest.steps import from_environment
from stillhouse.streams.ingest.worker import Clocks, Worker
from stillhouse.streams.instruments import Instruments
from stillhouse.streams.lock import hold
from stillhouse.streams.maintenance import Maintainer
from stillhouse.streams.settings import IngestSettings

log = logs.logger(__name__)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = process_parser("stillhouse.streams.ingest", "Store and score agents' events.")
    parser.add_argument("--ordinal", type=int, help="which worker this is; the least free one by default")
    return parser.parse_args(argv)


async def _serve(args: argparse.Namespace) -> None:
    config = Config.load(args.config, state=args.state, overrides={"kafka.bootstrap_servers": args.bootstrap_servers})
    kafka, settings = config.section("kafka", KafkaSettings), config.section("ingest", IngestSettings)
    store = Store.open(config.section("store", StoreSettings).location(config.state))
    ordinal = hold(config.state_dir("run"), "ingest", args.ordinal)
    instruments = Instruments("stillhouse_ingest_", "stillhouse_store_")
    reached = from_environment(os.environ)
    limits = {name: route.latency_limit_ms for name, route in config.sections("routes", RouteSettings).items()}
    slow = SlowLimits(settings.slow_request_ms, limits)
    worker = Worker(kafka, settings, store, ordinal.number, instruments, reached=reached, instance=ordinal.instance, slow=slow)
    maintainer = Maintainer(store, settings, instruments, worker.member.name, lambda: worker.flusher.recent)
    health = HealthServer(instruments, worker.status.healthy, worker.status.ready)
    address = await health.start(args.metrics_host, args.metrics_port)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.stop)

    def joined() -> None:
        ready = {"ready": "ingest", "pid": os.getpid(), "ordinal": ordinal.number, "url": address, "metrics": f"{address}/metrics"}
        print(json.dumps(ready), flush=True)

    chores = Chores(kafka, store, worker.erasures, worker.schemas, worker.resolver, worker.member.name, Clocks().now)
    tasks: list[asyncio.Task[None]] = []
    try:
        await worker.start()
        tasks = [asyncio.create_task(work) for work in (worker.run(joined), maintainer.run(), chores.run())]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:  # the worker was stopped; or one of them failed, and then the process does
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await worker.close()
        await health.stop()
        ordinal.release()


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM."""
    logs.configure()
    # Events are many, live for seconds and hold no cycles: with the default thresholds a quarter of the time goes to looking for some.
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a full disk is an error of a write, not the end of the process
    try:
        asyncio.run(_serve(_arguments(sys.argv[1:] if argv is None else argv)))
    except StillhouseError as error:
        log.error("ingest ends", error=str(error), kind=type(error).__name__)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
