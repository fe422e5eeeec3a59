"""`stillhouse-student`: the student server as a process of its own."""

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import get_args

from stillhouse.schemas.errors import MissingExtraError, StillhouseError
from stillhouse.schemas.precision import Precision

DRAIN_S = 30.0


def main(argv: list[str] | None = None) -> int:
    """Run it until SIGTERM or SIGINT; the exit code."""
    options = _parser().parse_args(argv)
    # Read when torch loads its thread pool: waiting threads must not eat the cores that others need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    try:
        return asyncio.run(_serve(options))
    except StillhouseError as error:
        print(f"stillhouse-student: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        fix = "Take another port, or --port 0."
        print(f"stillhouse-student: cannot listen on {options.host}:{options.port}: {error.strerror}. {fix}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stillhouse-student", description="Serve a base model and its students, OpenAI-compatible, on a CPU."
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--students", type=Path, help="the only folder that adapters are loaded from (default: anywhere)")
    parser.add_argument("--name", help="what the base model is called (default: its own name)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--threads", type=_positive, default=2, help="cores to compute on")
    precision = "of matrix products; auto takes bfloat16 where the CPU multiplies it in hardware"
    parser.add_argument("--dtype", choices=get_args(Precision), default="auto", help=precision)
    parser.add_argument("--batch", type=_positive, default=32, help="generations at once")
    parser.add_argument("--queue", type=_positive, default=512, help="generations that may wait; more are answered 503")
    parser.add_argument("--wait-ms", type=float, default=20.0, help="how long a lone request waits for company")
    parser.add_argument("--kv-bytes", type=int, default=2 << 30, help="memory for keys and values of earlier requests (default: 2 GiB)")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


async def _serve(options: argparse.Namespace) -> int:
    try:
        import torch
        from aiohttp import web

        from stillhouse.serving.student.app import StudentApp
        from stillhouse.serving.student.scheduler import Limits
        from stillhouse.serving.student.server import StudentServer
    except ImportError as error:
        raise MissingExtraError(f"the student server ({error.name})", "local") from error

    _log_as_json()
    torch.set_num_threads(options.threads)
    limits = Limits(batch=options.batch, queue=options.queue, wait_s=options.wait_ms / 1000)
    server = StudentServer(
        options.model,
        students=options.students,
        name=options.name,
        limits=limits,
        kv_bytes=options.kv_bytes,
        precision=options.dtype,
    )
    server.loop.start()
    app = StudentApp(server)
    runner = web.AppRunner(app.application(), handler_cancellation=True, access_log=None)
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    try:
        await runner.setup()
        site = web.TCPSite(runner, options.host, options.port)
        await site.start()
        host, port = runner.addresses[0][:2]
        print(json.dumps({"url": f"http://{host}:{port}", "pid": os.getpid()}), flush=True)
        await stop.wait()
        await app.drain(DRAIN_S)
    finally:
        await runner.cleanup()
        server.close(timeout=DRAIN_S)
    return 0


def _log_as_json() -> None:
    import structlog

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


if __name__ == "__main__":
    sys.exit(main())
