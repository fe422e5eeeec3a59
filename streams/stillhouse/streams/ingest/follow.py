"""Topics that are read whole first and followed then: `erasures` and `schemas`."""

from collections.abc import Callable
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

    def read(self, value: bytes) -> None:
        """Take one record.

        Raises:
            PermanentError: it cannot be read: an erasure must not be passed over.
        """
        erasure = codec.decode(value, Erasure)
        self._subjects.add((erasure.tenant, erasure.subject))
        self.fresh.append(erasure)


class Follower:
    """Reads both topics. `start` returns when they were read whole."""

    def __init__(self, settings: KafkaSettings, erasures: Erasures, schemas: TopicResolver) -> None:
        self._settings = settings
        self._take: dict[str, Callable[[Any], None]] = {
            topic_name(settings, ERASURES): lambda record: erasures.read(record.value),
            topic_name(settings, SCHEMAS): lambda record: self._learn(schemas, record),
        }
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
        missing = sorted(self._take.keys() - await consumer.topics())
        if missing:
            raise PermanentError(
                f"no topic {', '.join(missing)}", where=self._settings.bootstrap_servers, fix="Run `stillhouse topics apply`."
            )
        consumer.assign([TopicPartition(topic, 0) for topic in self._take])
        await self.catch_up()

    async def topics(self) -> set[str]:
        """Every topic that there is."""
        found: set[str] = await self._consumer.topics()
        return found

    async def catch_up(self) -> None:
        """Read both topics up to their ends now.

        Raises:
            UnreachableError: no broker answers.
        """
        places = [TopicPartition(topic, 0) for topic in self._take]
        try:
            ends = await self._consumer.end_offsets(places)
            while any([await self._consumer.position(place) < ends[place] for place in places]):
                self._handle(await self._consumer.getmany(timeout_ms=200))
        except (KafkaError, OSError) as error:
            raise UnreachableError(f"no Kafka broker answers: {error}", where=self._settings.bootstrap_servers) from error

    async def poll(self) -> None:
        """Take what has arrived since, without waiting."""
        self._handle(await self._consumer.getmany(timeout_ms=0))

    def _learn(self, schemas: TopicResolver, record: Any) -> None:
        """One that is no schema is logged and passed over: any producer may write there."""
        try:
            schemas.feed(record.key, record.value)
        except PermanentError as error:
            log.warning("a record of the topic schemas is no schema", key=repr(record.key), error=str(error))

    def _handle(self, batches: dict[Any, list[Any]]) -> None:
        for place, records in batches.items():
            for record in records:
                if record.value:
                    self._take[place.topic](record)

    async def stop(self) -> None:
        """Disconnect."""
        if self._consumer is not None:
            await self._consumer.stop()
