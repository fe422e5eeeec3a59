"""`python -m stillhouse.serving.gateway`: the gateway as a process. Prints one JSON line when it listens."""

import argparse
import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import Sequence

import structlog

from stillhouse.schemas.errors import StillhouseError
from stillhouse.sdk.config import Config
from stillhouse.sdk.process import process_parser
from stillhouse.serving import logs
from stillhouse.serving.gateway.engine_routes import engines
from stillhouse.serving.gateway.server import Gateway, Ports

log = structlog.get_logger()
SWITCH_S = 0.0005
"""How long the thread that sends events may keep the interpreter from a request; Python's own 5 ms would be the latency of many."""


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = process_parser("stillhouse.serving.gateway", "Answer agents: teacher and students. The metrics port is the admin port.")
    parser.add_argument("--host", default="127.0.0.1", help="for clients; other than loopback needs keys")
    parser.add_argument("--port", type=int, default=0, help="for clients; 0 for any")
    parser.add_argument("--engine-url", default="", help="the students' server of routes that name none")
    return parser.parse_args(argv)


async def _serve(args: argparse.Namespace) -> None:
    config = Config.load(args.config, state=args.state, overrides={"kafka.bootstrap_servers": args.bootstrap_servers})
    gateway, stop = Gateway(config, engines(config, args.engine_url)), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    url, admin = await gateway.start(Ports(args.host, args.port, args.metrics_host, args.metrics_port))
    print(json.dumps({"ready": "gateway", "url": url, "admin": admin, "pid": os.getpid()}), flush=True)
    await stop.wait()
    await gateway.stop()


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM; the exit code."""
    logs.configure()
    sys.setswitchinterval(SWITCH_S)
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)  # requests hold few cycles; looking for them often costs more than they do
    try:
        asyncio.run(_serve(_arguments(sys.argv[1:] if argv is None else argv)))
    except StillhouseError as error:
        log.error("the gateway ends", error=str(error), kind=type(error).__name__)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
