"""`python -m stillhouse.trainer.daemon`: the trainer in the background. Prints one JSON line when it looks."""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence

import structlog

from stillhouse.schemas.errors import PermanentError, StillhouseError
from stillhouse.sdk.config import Config
from stillhouse.sdk.process import process_parser
from stillhouse.trainer import child, windows
from stillhouse.trainer.child import Event, OnEvent
from stillhouse.trainer.daemon.board import Board
from stillhouse.trainer.daemon.health import HealthServer
from stillhouse.trainer.daemon.look import Looker
from stillhouse.trainer.daemon.loop import Daemon
from stillhouse.trainer.disk import names_full_disk
from stillhouse.trainer.files import alone

log = structlog.get_logger()


async def serve(args: argparse.Namespace, argv: Sequence[str] | None = None) -> None:
    """Run until SIGTERM. `argv` is the command line of a job, the trainer's own by default."""
    first = Config.load(args.config, state=args.state)
    run, logs = first.state_dir("run"), first.state_dir("logs")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    async def job(on_event: OnEvent, nice: int) -> Event:
        line = argv or child.command(first.state, first.path, args.bootstrap_servers)
        with names_full_disk(logs):
            return await child.run_job(line, logs / "trainer-jobs.log", on_event, nice=nice)

    refusal = PermanentError("another trainer runs here", where=str(run), fix="Stop it first.")
    with alone(run / "trainer.lock", refusal):
        board = Board(run, windows.wall_clock)
        looker = Looker(lambda: Config.load(first.path, state=first.state), args.bootstrap_servers)
        health = HealthServer(board, args.metrics_host, args.metrics_port)
        try:
            ready = {"ready": "trainer", "pid": os.getpid(), "url": health.address, "metrics": f"{health.address}/metrics"}
            print(json.dumps(ready), flush=True)
            await Daemon(looker, job, board, windows.wall_clock).run(stop)
        finally:
            health.stop()


def _configure_logs() -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def main(argv: Sequence[str] | None = None, job: Sequence[str] | None = None) -> int:
    """Run until SIGTERM; the exit code. `job` is the command line of a job, the trainer's own by default."""
    _configure_logs()
    try:
        asyncio.run(serve(process_parser("stillhouse.trainer.daemon", "Run windows when they are due.").parse_args(argv), job))
    except StillhouseError as error:
        log.error("the trainer ends", error=str(error), kind=type(error).__name__)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
