"""`python -m stillhouse.serving.canary`: the controller as a process. Prints one JSON line when it has read the log."""

import argparse
import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Sequence

import structlog
from aiohttp import web

from stillhouse.schemas.errors import PermanentError, StillhouseError
from stillhouse.sdk.config import Config
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.sdk.process import process_parser
from stillhouse.sdk.routes import RouteSettings
from stillhouse.serving import logs
from stillhouse.serving.canary.settings import ControllerSettings, terms_of
from stillhouse.serving.canary.shell import Controller

log = structlog.get_logger()


async def _serve(args: argparse.Namespace) -> None:
    config = Config.load(args.config, state=args.state, overrides={"kafka.bootstrap_servers": args.bootstrap_servers})
    kafka, settings = config.section("kafka", KafkaSettings), config.section("canary", ControllerSettings)
    routes = [terms_of(name, route) for name, route in config.sections("routes", RouteSettings).items()]
    name = f"canary/{socket.gethostname()}/{os.getpid()}"
    controller = Controller(kafka, settings, routes, name, lambda: time.time_ns() // 1000)
    stop, runner = asyncio.Event(), web.AppRunner(_application(controller), access_log=None)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        address = await _listen(runner, args.metrics_host, args.metrics_port)
        await controller.start()
        await controller.look()
        ready = {"ready": "canary", "pid": os.getpid(), "url": address, "metrics": f"{address}/metrics"}
        print(json.dumps(ready), flush=True)
        await controller.run(stop)
    finally:
        await controller.stop()
        await runner.cleanup()


async def _listen(runner: web.AppRunner, host: str, port: int) -> str:
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        fix = "Take another --metrics-port, or 0 for any."
        raise PermanentError(f"cannot listen: {error.strerror}", where=f"{host}:{port}", fix=fix) from error
    return f"http://{host}:{runner.addresses[0][1]}"


def _application(controller: Controller) -> web.Application:
    async def metrics(_: web.Request) -> web.Response:
        headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=controller.instruments.text(), headers=headers)

    async def alive(_: web.Request) -> web.Response:
        return web.json_response({"ok": True})

    async def ready(_: web.Request) -> web.Response:
        return web.json_response({"ok": controller.looked, "waits": controller.waits}, status=200 if controller.looked else 503)

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics), web.get("/healthz", alive), web.get("/readyz", ready)])
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM; the exit code."""
    logs.configure()
    try:
        asyncio.run(_serve(process_parser("stillhouse.serving.canary", "Decide which student serves.").parse_args(argv)))
    except StillhouseError as error:
        log.error("the controller ends", error=str(error), kind=type(error).__name__)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
