"""The embedded broker as a whole: start, serve, stop; and its command line.

One broker on one machine for laptops, demos and tests. It is not a production engine: who outgrows it points
`bootstrap_servers` at Apache Kafka.
"""

import argparse
import asyncio
import contextlib
import ipaddress
import json
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

from stillhouse.broker.commit import GroupCommit
from stillhouse.broker.connection import Connection
from stillhouse.broker.errors import BrokerError
from stillhouse.broker.state import BrokerState

log = logging.getLogger("stillhouse.broker")
PURPOSE = "one embedded broker, for laptops, demos and tests; not a production engine"
TICK_S, RETENTION_S = 0.1, 5.0


class Broker:
    """An embedded broker in this process."""

    def __init__(
        self, directory: Path, *, host: str = "127.0.0.1", port: int = 0, fsync: bool = True, partitions: int = 6,
        auto_create: bool = False, expose: bool = False, retention_s: float = RETENTION_S,
    ) -> None:  # fmt: skip
        """Settings only.

        `partitions` is for topics made without a number; `auto_create` makes topics that clients name; `expose` allows an address
        that other machines reach (there is no TLS and no login); `retention_s` is how often retention is applied.
        """
        self.directory, self.port, self.fsync = directory, port, fsync
        self.host = "127.0.0.1" if host == "localhost" else host  # one address: of two, each would get a free port of its own
        self.partitions, self.auto_create, self.expose, self.retention_s = partitions, auto_create, expose, retention_s
        self._tasks: set[asyncio.Task[None]] = set()
        self.failed = asyncio.Event()  # set when the broker can't go on and is to be stopped

    async def start(self) -> str:
        """Open the folder and listen; the answer is `bootstrap_servers`. Raises BrokerError."""
        if not _is_loopback(self.host):
            if not self.expose:
                raise BrokerError(f"{self.host} is not a loopback address: whoever reaches it reads and writes; add --expose to allow that")
            log.warning("LISTENING ON %s WITHOUT TLS OR LOGIN: anybody who reaches it may read, write and delete everything", self.host)
        self.state = BrokerState(self.directory, _now_ms(), fsync=self.fsync, default_partitions=self.partitions)
        self._commit = GroupCommit(fsync=self.fsync)
        try:
            self._server = await asyncio.start_server(self._accept, self.host, self.port, limit=1024 * 1024)
        except OSError as error:
            self.state.close(_now_ms())
            why = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            raise BrokerError(f"can't listen on {self.host}:{self.port}: {why}; give another --port (0: a free one)") from error
        self.port = int(self._server.sockets[0].getsockname()[1])
        for work in (self._every(TICK_S, self._tick), self._every(self.retention_s, lambda: self.state.topics.retain(_now_ms()))):
            self._run(work).add_done_callback(self._stop_working)
        log.info("broker ready on %s:%d: %s", self.host, self.port, PURPOSE)
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def _tick(self) -> None:
        self.state.coordinator.tick(asyncio.get_running_loop().time())

    async def _every(self, seconds: float, action: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(seconds)
            action()

    def _run(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _stop_working(self, task: asyncio.Task[None]) -> None:
        """Timeouts or retention ended: a broker without them would serve on and be wrong."""
        if not task.cancelled():
            self.failed.set()

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the broker failed", exc_info=error)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._run(Connection(reader, writer, self.state, self._commit, auto_create=self.auto_create).serve())

    async def stop(self) -> None:
        """Close every connection, make everything durable, let go of the folder."""
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()
        await self._commit.drain()
        self.state.close(_now_ms())


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _serve(broker: Broker) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    bootstrap = await broker.start()
    print(json.dumps({"bootstrap_servers": bootstrap, "dir": str(broker.directory), "pid": os.getpid()}), flush=True)
    ends = {asyncio.create_task(event.wait()) for event in (stopping, broker.failed)}
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for end in ends:
        end.cancel()
    await broker.stop()
    return 1 if broker.failed.is_set() else 0


def run_broker(broker: Broker) -> int:
    """Run `broker` in the foreground until SIGTERM or SIGINT, printing one line of JSON when it is ready.

    Returns the exit code: 0 after a stop on request, 1 when it could not start (one line on standard error says why) or failed.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # where the limit can't be raised fewer partitions fit
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        return asyncio.run(_serve(broker))
    except BrokerError as error:
        print(f"stillhouse broker: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stillhouse broker", description=f"Speaks Kafka's protocol: {PURPOSE}.")
    parser.add_argument("--dir", type=Path, required=True, help="state folder, made if absent; one broker at a time")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on, 0: a free one (default)")
    parser.add_argument("--fsync", choices=("on", "off"), default="on", help="off: a power cut may lose acknowledged records (tests)")
    parser.add_argument("--partitions", type=int, default=6, help="for topics made without a number (default 6)")
    parser.add_argument("--auto-create", action="store_true", help="make topics that clients name and that do not exist")
    parser.add_argument("--expose", action="store_true", help="allow a --host that other machines reach: no TLS, no login")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code (argparse exits with 2 for wrong usage)."""
    parser = _parser()
    args = parser.parse_args(argv)
    if not 0 <= args.port <= 65535:
        parser.error("--port must be within 0..65535")
    if args.partitions < 1:
        parser.error("--partitions must be at least 1")
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    return run_broker(
        Broker(
            args.dir, host=args.host, port=args.port, fsync=args.fsync == "on", partitions=args.partitions,
            auto_create=args.auto_create, expose=args.expose,
        )
    )  # fmt: skip
