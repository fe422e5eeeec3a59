"""The gateway put together: ports, memory, capture, follower."""

import asyncio
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp
import structlog
from aiohttp import web

from stillhouse.schemas.errors import PermanentError
from stillhouse.sdk.client import Client
from stillhouse.sdk.config import Config
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.sdk.redaction import Redactor
from stillhouse.sdk.routes import RouteSettings
from stillhouse.serving.gateway.admin import admin_application
from stillhouse.serving.gateway.app import GatewayApp
from stillhouse.serving.gateway.backend import StudentEngine
from stillhouse.serving.gateway.capture import Capture, Sink
from stillhouse.serving.gateway.desk import Desk, Route
from stillhouse.serving.gateway.follower import Follower
from stillhouse.serving.gateway.instruments import Instruments
from stillhouse.serving.gateway.keys import FILE, Keys
from stillhouse.serving.gateway.memory import Memory
from stillhouse.serving.gateway.prices import BusyTime
from stillhouse.serving.gateway.teacher import Teacher

DRAIN_S = 30.0
LINGER_S = 2.0
"""How long the rest of a refused body is read, so that the client gets to read why."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")
log = structlog.get_logger()


@dataclass
class Ports:
    """Where to listen; 0 takes a free port."""

    host: str = "127.0.0.1"
    port: int = 0
    admin_host: str = "127.0.0.1"
    admin_port: int = 0


@dataclass
class Gateway:
    """A gateway of one process.

    Args:
        config: its settings and state folder.
        engines: the students' server of each route that has one.
        sink: takes the events; the SDK's client by default.
        follow: whether to follow the topic `students`.
    """

    config: Config
    engines: Mapping[str, StudentEngine] = field(default_factory=dict)
    sink: Sink | None = None
    follow: bool = True

    async def start(self, ports: Ports) -> tuple[str, str]:
        """Listen; gives the addresses for clients and for admin.

        Raises:
            PermanentError: no routes, wrong settings, a port that is taken, or no keys on an address that others reach.
        """
        config = self.config
        self._kafka = config.section("kafka", KafkaSettings)
        keys = Keys(config.state_dir("secrets") / FILE)
        if not keys.closed and ports.host not in LOOPBACK:
            fix = "Make one: python -m stillhouse.serving.gateway.keys add TENANT"
            raise PermanentError("without keys the gateway listens on loopback only", where=ports.host, fix=fix)
        instruments, self._runners = Instruments(), list[web.AppRunner]()
        self._memory = Memory(config.state_dir("run") / "gateway")
        jar = aiohttp.DummyCookieJar()  # a cookie of one tenant's reply is not for the next tenant's request
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=False, cookie_jar=jar)
        redactor = Redactor()
        self._client: Client | None = None
        if self.sink is None:
            spool = config.state_dir("spool") / "gateway"
            self._client = Client(settings=self._kafka, spool=spool, agent="gateway", way_in="gateway", redaction=redactor)
        sink = self.sink if self.sink is not None else self._client
        assert sink is not None
        capture = Capture(sink, self._memory, instruments, Desk.now)
        self.desk = Desk(self._routes(), keys, self._memory, capture, instruments, redactor)
        self._recovering = asyncio.create_task(_recover(capture, instruments))
        self._stop, self.follower = asyncio.Event(), Follower(self.desk, self._kafka)
        self._following = asyncio.create_task(self.follower.run(self._stop)) if self.follow else None
        self.app = GatewayApp(self.desk)
        admin = admin_application(self.desk, lambda: self.follower.waits if self.follow else "")
        url = await self._listen(self.app.application(), ports.host, ports.port)
        return url, await self._listen(admin, ports.admin_host, ports.admin_port)

    async def stop(self) -> None:
        """Take nothing new, let open requests end, and hand over the events."""
        for runner in self._runners[:1]:
            for site in list(runner.sites):
                await site.stop()
        await self.app.drain(DRAIN_S)
        self._stop.set()
        if self._following is not None:
            await self._following
        await self.follower.close()
        for runner in self._runners:
            await runner.cleanup()
        for engine in self.engines.values():
            await engine.close()
        self._recovering.cancel()
        await asyncio.wait([self._recovering])
        await self._session.close()
        self._memory.close()
        if self._client is not None:
            report = await self._client.aclose()
            log.info("capture_closed", sent=report.sent, left=report.left)

    def _routes(self) -> dict[str, Route]:
        loop = asyncio.get_running_loop()
        found = {
            name: Route(name, settings, Teacher(name, settings, self._session), self.engines.get(name), BusyTime(loop.time))
            for name, settings in self.config.sections("routes", RouteSettings).items()
        }
        if not found:
            raise PermanentError(
                "the gateway has no routes", where="[routes.<name>]", fix="Name a route and its teacher_url and teacher_model."
            )
        return found

    async def _listen(self, application: web.Application, host: str, port: int) -> str:
        runner = web.AppRunner(application, access_log=None, lingering_time=LINGER_S)
        self._runners.append(runner)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port, backlog=1024).start()
        except OSError as error:
            raise PermanentError(
                f"cannot listen: {error.strerror}", where=f"{host}:{port}", fix="Take another port, or 0 for any."
            ) from error
        return f"http://{host}:{runner.addresses[0][1]}"


async def _recover(capture: Capture, instruments: Instruments) -> None:
    """What earlier processes may not have sent, while requests are answered already."""
    try:
        if sent := await capture.recover():
            log.info("events_sent_again", events=sent)
    except sqlite3.Error as error:
        instruments.count("memory_errors_total")
        log.error("memory_failed", error=str(error))
