"""Facts as Faust brings them. Stateless: a record only says that there may be something new, and how far the log was read.

A Faust agent that raises loses its event: so nothing raises out of here but the end of the process.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import faust

from stillhouse.schemas import codec
from stillhouse.schemas.errors import RetryableError
from stillhouse.schemas.facts import TrajectoryFacts, Watermark
from stillhouse.schemas.topics import TRAJECTORIES
from stillhouse.sdk.kafka import KafkaSettings, faust_args, topic_name
from stillhouse.streams.ingest.decode import UNKNOWN_SCHEMA
from stillhouse.streams.ingest.records import Rejected, source_of
from stillhouse.streams.logs import logger
from stillhouse.streams.signals.settings import SignalsSettings

log = logger(__name__)


@dataclass(slots=True)
class FaustRecord:
    """A record of Faust's as the rest of streams knows records. `timestamp` is milliseconds."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


class Facts:
    """What was read since it was last asked.

    Attributes:
        fresh: whether a fact has come since the last look.
        counts: records by what they were.
    """

    def __init__(self) -> None:
        self.fresh = True  # the first look is due at once: something may have been left by the process before
        self.counts = {"facts": 0, "watermark": 0}
        self._marks: dict[int, int] = {}

    def take(self, value: TrajectoryFacts | Watermark) -> None:
        """Take one value."""
        if isinstance(value, Watermark):
            self.counts["watermark"] += 1
            self._marks[value.partition] = max(value.watermark, self._marks.get(value.partition, 0))
        else:
            self.counts["facts"] += 1
            self.fresh = True

    @property
    def watermark(self) -> int | None:
        """The least of those of the partitions that this worker has heard of; None before the first."""
        return min(self._marks.values(), default=None)


def read(record: FaustRecord, resolver: codec.SchemaResolver | None) -> TrajectoryFacts | Watermark | Rejected:
    """One record.

    Raises:
        SchemaPendingError: the registry is away: ask again.
    """
    try:
        value = codec.decode_any(record.value or b"", (TrajectoryFacts, Watermark), resolver)
    except codec.UndecodableError as error:
        return Rejected(record, source_of(record), "signals", error.reason, error.what)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        return Rejected(record, source_of(record), "signals", "invalid", f"not a fact: {error!r}")
    assert isinstance(value, TrajectoryFacts | Watermark)
    return value


def make_app(
    kafka: KafkaSettings,
    settings: SignalsSettings,
    datadir: str,
    handle: Callable[[FaustRecord], Awaitable[None]],
) -> Any:
    """The Faust application: one agent over facts, one record at a time, no tables.

    Args:
        kafka: `[kafka]`.
        settings: `[signals]`.
        datadir: a folder that Faust wants and, without tables, leaves empty.
        handle: takes each record; must not raise.
    """
    app = faust.App(
        topic_name(kafka, settings.group),
        **faust_args(kafka, faust.SASLCredentials),
        web_enabled=False,
        datadir=datadir,
        broker_session_timeout=settings.session_timeout,
        broker_heartbeat_interval=settings.session_timeout / 5,
        broker_commit_interval=1.0,
        consumer_auto_offset_reset="earliest",
        topic_allow_declare=False,
    )
    topic = app.topic(topic_name(kafka, TRAJECTORIES), key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")

    async def facts(stream: Any) -> None:
        async for event in stream.events():
            await handle(_record(event.message))

    app.agent(topic, name="facts", concurrency=1)(facts)
    return app


def _record(message: Any) -> FaustRecord:
    found = message.headers or ()
    headers = tuple(found.items() if isinstance(found, dict) else found)
    timestamp = round((message.timestamp or 0) * 1000)
    return FaustRecord(message.topic, message.partition, message.offset, timestamp, message.key, message.value, headers)


class Guard:
    """Reads records into `Facts`; what cannot be read goes to the DLQ, with its delivery awaited.

    Args:
        facts: takes what was read.
        resolver: knows schemas that are none of our releases.
        learn: reads what schemas there are now.
        dead_letters: sends to the DLQ.
        wait: waits a moment before something is tried again.
        count: counts dead letters by reason.
    """

    def __init__(
        self,
        facts: Facts,
        resolver: codec.SchemaResolver | None,
        learn: Callable[[], Awaitable[None]],
        dead_letters: Callable[[list[Rejected]], Awaitable[None]],
        wait: Callable[[], Awaitable[None]],
        count: Callable[[str], None],
    ) -> None:
        self._facts, self._resolver, self._learn = facts, resolver, learn
        self._dead_letters, self._wait, self._count = dead_letters, wait, count

    async def __call__(self, record: FaustRecord) -> None:
        """Take one record. What is away is waited for: the record is not acknowledged before.

        Raises:
            PermanentError: the DLQ refuses it, or an erasure cannot be read.
        """
        while True:
            try:
                return await self._one(record)
            except RetryableError as error:
                log.warning("waiting", error=str(error))
                await self._wait()

    async def _one(self, record: FaustRecord) -> None:
        value = read(record, self._resolver)
        if isinstance(value, Rejected) and value.reason in UNKNOWN_SCHEMA:
            await self._learn()
            value = read(record, self._resolver)
        if isinstance(value, Rejected):
            await self._dead_letters([value])
            self._count(value.reason)
            log.warning("a fact cannot be read", partition=record.partition, offset=record.offset, reason=value.reason)
        else:
            self._facts.take(value)
