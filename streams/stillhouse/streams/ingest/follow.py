"""Topics that are read whole first and followed then: `erasures` and `schemas`."""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from stillhouse.schemas import codec
from stillhouse.schemas.errors import PermanentError, UnreachableError
from stillhouse.schemas.facts import Erasure
from stillhouse.schemas.registry import TopicResolver
from stillhouse.schemas.topics import ERASURES, SCHEMAS
from stillhouse.sdk.kafka import KafkaSettings, aiokafka_args, topic_name
from stillhouse.streams.logs import logger

log = logger(__name__)


class Erasures:
    """Who is to be forgotten. `fresh` holds what was read since it was last taken."""

    def __init__(self) -> None:
        self._subjects: set[tuple[str, str]] = set()
        self.fresh: list[Erasure] = []

    def __call__(self, tenant: str, subject: str) -> bool:
        """Whether this subject of this tenant is to be forgotten."""
        return (tenant, subject) in self._subjects

    def by_tenant(self) -> dict[str, list[str]]:
        """All subjects to be forgotten, by tenant. From any thread."""
        found: dict[str, list[str]] = {}
        for tenant, subject in list(self._subjects):
            found.setdefault(tenant, []).append(subject)
        return found

    def read(self, value: bytes, resolver: codec.SchemaResolver | None = None) -> None:
        """Take one record.

        Args:
            value: of the record.
            resolver: knows schemas that are none of our releases.

        Raises:
            PermanentError: it cannot be read: an erasure must not be passed over.
            SchemaPendingError: the registry that knows its schema is away.
        """
        try:
            erasure = codec.decode(value, Erasure, resolver)
        except (ValueError, TypeError, RecursionError) as error:
            raise PermanentError(f"an erasure cannot be read: {error!r}", where=ERASURES) from error
        self._subjects.add((erasure.tenant, erasure.subject))
        self.fresh.append(erasure)


class Follower:
    """Reads both topics. `start` returns when they were read whole.

    Args:
        settings: the section `[kafka]`.
        erasures: takes those.
        schemas: learns these.
        resolver: over these and a registry, for erasures of another release.
    """

    def __init__(self, settings: KafkaSettings, erasures: Erasures, schemas: TopicResolver, resolver: codec.SchemaResolver) -> None:
        self._settings, self._erasures, self._schemas, self._resolver = settings, erasures, schemas, resolver
        self._names = {topic_name(settings, name): name for name in (ERASURES, SCHEMAS)}
        self._unread: deque[bytes] = deque()
        self._reading = Lock()
        self._consumer: Any = None

    async def start(self) -> None:
        """Connect and read everything that is there.

        Raises:
            UnreachableError: no broker answers.
            PermanentError: a topic is missing, or holds what cannot be read.
        """
        consumer = AIOKafkaConsumer(**aiokafka_args(self._settings, group_id=None, enable_auto_commit=False, auto_offset_reset="earliest"))
        try:
            await consumer.start()
        except (KafkaError, OSError) as error:
            await consumer.stop()
            raise UnreachableError(
                f"no Kafka broker answers: {error}",
                where=self._settings.bootstrap_servers,
                fix="Start it, or set [kafka] bootstrap_servers.",
            ) from error
        self._consumer = consumer
        missing = sorted(self._names.keys() - await self.topics())
        if missing:
            raise PermanentError(
                f"no topic {', '.join(missing)}", where=self._settings.bootstrap_servers, fix="Run `stillhouse topics apply`."
            )
        consumer.assign([TopicPartition(topic, 0) for topic in self._names])
        await self.catch_up()

    async def topics(self) -> set[str]:
        """Every topic that there is.

        Raises:
            UnreachableError: no broker answers.
        """
        with self._reaching():
            found: set[str] = await self._consumer.topics()
        return found

    async def catch_up(self) -> None:
        """Read both topics up to their ends now.

        Raises:
            UnreachableError: no broker answers.
            PermanentError: an erasure cannot be read, with all schemas known.
        """
        places = [TopicPartition(topic, 0) for topic in self._names]
        with self._reaching():
            ends = await self._consumer.end_offsets(places)
            while any([await self._consumer.position(place) < ends[place] for place in places]):
                self._sort(await self._consumer.getmany(timeout_ms=200))
        await asyncio.to_thread(self._erase)

    async def poll(self) -> None:
        """Take what has arrived since, without waiting.

        Raises:
            UnreachableError: no broker answers.
            PermanentError: an erasure cannot be read, with all schemas known.
        """
        with self._reaching():
            self._sort(await self._consumer.getmany(timeout_ms=0))
        if self._unread:
            await self.catch_up()  # its schema may be in the other topic

    def _sort(self, batches: dict[Any, list[Any]]) -> None:
        """Learn the schemas, keep the erasures: one of these may need one of those."""
        for place, records in batches.items():
            for record in records:
                if record.value and self._names[place.topic] == SCHEMAS:
                    self._learn(record)
                elif record.value:
                    self._unread.append(record.value)

    def _erase(self) -> None:
        """Take the erasures; one that cannot be read (yet) stays the next one."""
        with self._reading:
            while self._unread:
                self._erasures.read(self._unread[0], self._resolver)
                self._unread.popleft()

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (KafkaError, OSError) as error:
            raise UnreachableError(f"no Kafka broker answers: {error!r}", where=self._settings.bootstrap_servers) from error

    def _learn(self, record: Any) -> None:
        """One that is no schema is logged and passed over: any producer may write there."""
        try:
            self._schemas.feed(record.key, record.value)
        except PermanentError as error:
            log.warning("a record of the topic schemas is no schema", key=repr(record.key), error=str(error))

    async def stop(self) -> None:
        """Disconnect."""
        if self._consumer is not None:
            await self._consumer.stop()
