"""`/metrics`, `/healthz` and `/readyz` of a stream process."""

from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from stillhouse.schemas.errors import PermanentError
from stillhouse.streams.instruments import Instruments

State = Callable[[], tuple[bool, Mapping[str, Any]]]


class HealthServer:
    """Serves them on loopback by default.

    Args:
        instruments: what `/metrics` shows.
        healthy: whether the process lives, and details.
        ready: whether it does its work, and details.
    """

    def __init__(self, instruments: Instruments, healthy: State, ready: State) -> None:
        self._instruments = instruments
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", lambda request: self._answer(healthy))
        app.router.add_get("/readyz", lambda request: self._answer(ready))
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self, host: str, port: int) -> str:
        """Listen.

        Returns:
            The base address.

        Raises:
            PermanentError: the port is in use.
        """
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise PermanentError(
                f"cannot listen: {error}", where=f"{host}:{port}", fix="Take another --metrics-port, or 0 for any."
            ) from error
        return f"http://{host}:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._instruments.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _answer(self, state: State) -> web.Response:
        good, details = state()
        return web.json_response({"ok": good, **details}, status=200 if good else 503)
