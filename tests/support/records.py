"""Record batches and single requests, below what the client libraries let a test say."""

import asyncio
import struct
from collections.abc import Sequence
from typing import Any

from aiokafka.conn import create_conn
from aiokafka.protocol.api import Request
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

GZIP = 1


def make_batch(
    values: Sequence[bytes],
    *,
    timestamps: Sequence[int] | None = None,
    producer: int = -1,
    epoch: int = -1,
    sequence: int = -1,
    codec: int = 0,
) -> bytes:
    """One record batch as a client would send it; `timestamps` in ms (default: 1, 2, 3, ...)."""
    builder = DefaultRecordBatchBuilder(2, codec, False, producer, epoch, sequence, 10_000_000)
    for offset, value in enumerate(values):
        builder.append(offset, offset + 1 if timestamps is None else timestamps[offset], None, value, [])
    return bytes(builder.build())


async def ask(bootstrap: str, request: Request[Any]) -> Any:
    """Send one request on a connection of its own; the answer's struct."""
    host, _, port = bootstrap.rpartition(":")
    connection = await create_conn(host, int(port), request_timeout_ms=20_000)
    try:
        return await connection.send(request)
    finally:
        connection.close()


async def produce_raw(bootstrap: str, topic: str, batch: bytes, partition: int = 0) -> tuple[int, int]:
    """(error code, base offset) of producing `batch` with acks=all.

    Apache Kafka says that a topic is made before its partitions are led: its "unknown" (3) and "not the leader" (6) are asked again.
    """
    async with asyncio.timeout(20):
        while True:
            answer = await ask(bootstrap, ProduceRequest(None, -1, 10_000, [(topic, [(partition, batch)])]))
            ((_, ((_, error, offset, *_),)),) = answer.topics
            if error not in (3, 6):
                return error, offset


async def fetch_raw(bootstrap: str, topic: str, offset: int, *, max_bytes: int, partition_bytes: int) -> tuple[int, bytes]:
    """(error code, records) of fetching partition 0."""
    answer = await ask(bootstrap, FetchRequest(500, 1, max_bytes, 0, [(topic, [(0, offset, partition_bytes)])]))
    (_, ((_, error, *_, records),)), = answer.topics  # fmt: skip
    return error, records


async def send_bytes(bootstrap: str, data: bytes, *, answer: int = 0) -> bytes:
    """Write `data` to a new connection, then read up to `answer` bytes or to the end."""
    host, _, port = bootstrap.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(data)
        await writer.drain()
        if answer:
            return await reader.readexactly(answer)
        writer.write_eof()
        return await reader.read()
    except (ConnectionError, asyncio.IncompleteReadError):
        return b""
    finally:
        writer.close()


def frame(key: int, version: int, body: bytes, *, correlation: int = 1, flexible: bool = False) -> bytes:
    """A request's bytes with its length and header."""
    content = struct.pack(">hhih", key, version, correlation, -1) + (b"\0" if flexible else b"") + body
    return struct.pack(">i", len(content)) + content
