"""`python -m stillhouse.console.page`: one page that says where the loop is."""

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from aiohttp import web

from stillhouse.console import context
from stillhouse.console.output import print_error
from stillhouse.console.page.view import POLICY, render
from stillhouse.console.status import gather
from stillhouse.schemas.errors import PermanentError, StillhouseError


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stillhouse.console.page", description=__doc__)
    parser.add_argument("--state", type=Path)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8486, help="0 takes a free one")
    return parser.parse_args()


def application(loaded: context.Context) -> web.Application:
    """The page, the same as JSON, and a health check."""

    async def page(request: web.Request) -> web.Response:
        try:
            text = render(await asyncio.to_thread(gather, loaded))
        except StillhouseError as error:
            raise web.HTTPServiceUnavailable(text=f"{error}\n") from error
        return web.Response(text=text, content_type="text/html", headers={"Content-Security-Policy": POLICY})

    async def status(request: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(gather, loaded))

    async def healthy(request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    app = web.Application()
    app.add_routes([web.get("/", page), web.get("/status.json", status), web.get("/healthz", healthy), web.get("/readyz", healthy)])
    return app


async def serve(loaded: context.Context, host: str, port: int) -> None:
    """Serve until SIGTERM; says its address as one line of JSON when it listens.

    Raises:
        PermanentError: the port is in use, or the address is not of this machine.
    """
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(application(loaded), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        print(json.dumps({"url": f"http://{host}:{runner.addresses[0][1]}", "pid": os.getpid()}), flush=True)
        await stop.wait()
    except OSError as error:
        fix = "Another program has the port: stop it, or give another one (--port; for the whole stack: stillhouse up --any-port)."
        raise PermanentError(f"cannot listen: {error.strerror}", where=f"{host}:{port}", fix=fix) from error
    finally:
        await runner.cleanup()


def main() -> int:
    """Run the page; its exit code."""
    arguments = _arguments()
    try:
        asyncio.run(serve(context.load(arguments.state, arguments.config), arguments.host, arguments.port))
    except StillhouseError as error:
        print_error(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
