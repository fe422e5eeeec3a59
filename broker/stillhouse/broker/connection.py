"""One client connection: frames in, requests dispatched, answers out in the order of their requests."""

import asyncio
import logging
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Any

from stillhouse.broker.api import Context, admin, data, groups
from stillhouse.broker.codec import Chunks, DecodeError, Message, Reader
from stillhouse.broker.commit import GroupCommit
from stillhouse.broker.errors import Code
from stillhouse.broker.messages import APIS, Api
from stillhouse.broker.state import BrokerState

log = logging.getLogger("stillhouse.broker")
MAX_FRAME = 100 * 1024 * 1024  # as Kafka's socket.request.max.bytes
MAX_IN_FLIGHT = 64  # requests of one connection that are worked on; more wait in the socket
_API_VERSIONS = 18
_HEAD = struct.Struct(">hhi")

Handler = Callable[[Message, Context], Awaitable[Message | None]]
HANDLERS: dict[str, Handler] = {
    name: getattr(module, name)
    for module, names in (
        (data, ("produce", "fetch", "list_offsets", "init_producer_id")),
        (admin, ("metadata", "create_topics", "delete_topics", "describe_configs", "alter_configs", "incremental_alter_configs")),
        (groups, ("find_coordinator", "join_group", "heartbeat", "leave_group", "sync_group", "offset_commit", "offset_fetch")),
        (groups, ("describe_groups", "list_groups", "delete_groups", "offset_delete")),
    )
    for name in names
}


class Connection:
    """Serves one socket until it closes, sends something that is not Kafka's protocol, or the broker stops."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, state: BrokerState, commit: GroupCommit, *, auto_create: bool
    ) -> None:
        """Of an accepted socket."""
        self.reader, self.writer, self.state, self.commit, self.auto_create = reader, writer, state, commit, auto_create
        self.peer = str((writer.get_extra_info("peername") or ("?",))[0])
        local = writer.get_extra_info("sockname") or ("", 0)
        self.address = (str(local[0]), int(local[1]))
        self._answers: asyncio.Queue[asyncio.Task[Chunks]] = asyncio.Queue(MAX_IN_FLIGHT)

    async def serve(self) -> None:
        """Read and answer requests. A request that can't be understood ends this connection and nothing else."""
        reading, answering = asyncio.create_task(self._read()), asyncio.create_task(self._answer())
        try:
            await asyncio.wait({reading, answering}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting = [reading, answering, *(self._answers.get_nowait() for _ in range(self._answers.qsize()))]
            for task in waiting:
                task.cancel()
            self._report(await asyncio.gather(*waiting, return_exceptions=True))
            self.writer.transport.abort()

    def _report(self, outcomes: list[Any]) -> None:
        for error in (outcome for outcome in outcomes if isinstance(outcome, Exception)):
            if isinstance(error, DecodeError):
                log.warning("connection from %s closed: %s", self.peer, error)
            elif not isinstance(error, (asyncio.IncompleteReadError, ConnectionError, TimeoutError)):  # those end every connection
                log.error("connection from %s closed: a request failed", self.peer, exc_info=error)

    async def _read(self) -> None:
        while True:
            size = int.from_bytes(await self.reader.readexactly(4), "big", signed=True)
            if not _HEAD.size <= size <= MAX_FRAME:
                raise DecodeError(f"a frame of {size} bytes; is this a Kafka client without TLS?")
            frame = await self.reader.readexactly(size)
            # A task starts in the order of its creation and appends before it first waits: pipelined batches keep their order,
            # and a producer that sends and leaves at once (acks=0) is heard.
            await self._answers.put(asyncio.create_task(self._handle(frame)))

    async def _answer(self) -> None:
        while True:
            task = await self._answers.get()
            self.writer.writelines(await task)
            await self.writer.drain()

    async def _handle(self, frame: bytes) -> Chunks:
        reader = Reader(frame)
        key, version, correlation = _HEAD.unpack(reader.take(_HEAD.size))
        api = APIS.get(key)
        if api is None:
            raise DecodeError(f"request {key} is not one that this broker answers (ApiVersions lists them)")
        if not api.first <= version <= api.last:
            if key != _API_VERSIONS:
                raise DecodeError(f"{api.name} version {version} is outside {api.first}..{api.last} (ApiVersions says so)")
            return _frame(api, 0, correlation, _versions(Code.UNSUPPORTED_VERSION))
        length = int.from_bytes(reader.take(2), "big", signed=True)
        client = str(reader.take(length), "utf-8", "replace") if length > 0 else ""
        if version >= api.flexible:
            reader.skip_tags()
        request = api.codec(api.request, version).decode(reader)
        if key == _API_VERSIONS:
            return _frame(api, version, correlation, _versions(Code.NONE))
        now = asyncio.get_running_loop().time()
        now_ms = time.time_ns() // 1_000_000
        context = Context(self.state, self.commit, self.auto_create, version, client, self.peer, self.address, now_ms, now)
        answer = await HANDLERS[api.name](request, context)
        return [] if answer is None else _frame(api, version, correlation, answer)


def _versions(code: Code) -> Message:
    return {"error": code, "apis": [{"key": api.key, "first": api.first, "last": api.last} for api in APIS.values()]}


def _frame(api: Api, version: int, correlation: int, answer: Message) -> Chunks:
    chunks: Chunks = [b"", correlation.to_bytes(4, "big", signed=True)]
    if version >= api.flexible and api.key != _API_VERSIONS:  # its answer's header never has tags: clients read it before they know us
        chunks.append(b"\0")
    api.codec(api.response, version).encode(answer, chunks)
    chunks[0] = sum(map(len, chunks)).to_bytes(4, "big")
    return chunks
