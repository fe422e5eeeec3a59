"""Reads the topics that a canary is decided on, from their beginning: the log is the only state there is."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from stillhouse.schemas import codec
from stillhouse.schemas.errors import PermanentError, UnreachableError
from stillhouse.schemas.facts import StudentState, TrajectoryFacts, Watermark
from stillhouse.schemas.route_state import RouteState, RouteStates
from stillhouse.schemas.topics import EVENTS, STUDENTS, TRAJECTORIES, VERDICTS
from stillhouse.sdk.kafka import KafkaSettings, aiokafka_args, confluent_args, topic_name

_log = logging.getLogger("stillhouse.kafka")
_TIMEOUT_S = 5.0
READ = (EVENTS, TRAJECTORIES, STUDENTS, VERDICTS)


def partition_counts(settings: KafkaSettings) -> dict[str, int]:
    """How many partitions each topic has that a canary needs. Blocks.

    Raises:
        UnreachableError: no broker answers.
        PermanentError: one is missing.
    """
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    try:
        known = AdminClient(confluent_args(settings), logger=_log).list_topics(timeout=_TIMEOUT_S).topics
    except KafkaException as error:
        raise _away(settings, error) from error
    names = {name: topic_name(settings, name) for name in READ}
    if missing := sorted(set(names.values()) - set(known)):
        fix = "Run `stillhouse topics apply`."
        raise PermanentError(f"no topic {', '.join(missing)}", where=settings.bootstrap_servers, fix=fix)
    return {name: len(known[full].partitions) for name, full in names.items()}


def _away(settings: KafkaSettings, error: Exception) -> UnreachableError:
    fix = "Start it, or set [kafka] bootstrap_servers."
    return UnreachableError(f"no Kafka broker answers: {error!r}", where=settings.bootstrap_servers, fix=fix)


class Tail:
    """All partitions of one topic, without a group: every reader reads everything.

    Args:
        settings: the section `[kafka]`.
        topic: its name without the prefix.
    """

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self._settings, self._topic = settings, topic
        self._consumer: Any = None
        self._places: list[Any] = []

    async def start(self) -> None:
        """Connect, at the beginning of the topic.

        Raises:
            UnreachableError: no broker answers.
            PermanentError: there is no such topic.
        """
        count = (await asyncio.to_thread(partition_counts, self._settings))[self._topic]
        self._places = [TopicPartition(topic_name(self._settings, self._topic), number) for number in range(count)]
        # Soon enough that a look which waits for a lost connection does not outlast the broker's restart by much.
        waits = {"request_timeout_ms": round(_TIMEOUT_S * 1000), "metadata_max_age_ms": 30_000}
        ours = {"group_id": None, "enable_auto_commit": False, "auto_offset_reset": "earliest"}
        consumer = AIOKafkaConsumer(**aiokafka_args(self._settings, **ours, **waits))
        try:
            await consumer.start()
            consumer.assign(self._places)
        except (KafkaError, OSError) as error:
            await consumer.stop()
            raise _away(self._settings, error) from error
        self._consumer = consumer

    async def catch_up(self, take: Callable[[Any], None]) -> None:
        """Hand over every record up to the end of each partition as it is now.

        Raises:
            UnreachableError: no broker answers; the next call goes on where this one stopped.
        """
        try:
            ends = await self._consumer.end_offsets(self._places)
            while any([await self._consumer.position(place) < ends[place] for place in self._places]):
                for records in (await self._consumer.getmany(timeout_ms=200)).values():
                    for record in records:
                        take(record)
        except (KafkaError, OSError) as error:
            raise _away(self._settings, error) from error

    async def stop(self) -> None:
        """Disconnect."""
        if self._consumer is None:
            return
        try:
            await self._consumer.stop()
        except asyncio.CancelledError:
            # aiokafka awaits a task of its own that it has just cancelled; one that had not begun yet says so.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise


class Written(msgspec.Struct, frozen=True):
    """One record of the topic `students` as it was read, and whether it was followed."""

    offset: int
    record: StudentState
    accepted: bool


class Students:
    """What the topic `students` says: the state of every route, each decision, and how each epoch of a running canary began."""

    def __init__(self) -> None:
        self.states = RouteStates()
        self.decisions: list[Written] = []
        self._epochs: dict[str, dict[int, RouteState]] = {}
        self._crowned: dict[str, int] = {}

    def read(self, record: Any) -> None:
        """Take one record of the topic.

        Raises:
            UndecodableError: it cannot be read: what a route serves must not be guessed.
        """
        if record.value:
            self.take(record.offset, codec.decode(record.value, StudentState))

    def take(self, offset: int, record: StudentState) -> None:
        """Take one decision."""
        after = self.states.apply(offset, record)
        self.decisions.append(Written(offset, record, after is not self.states))
        if after.of(record.route).champion != self.states.of(record.route).champion:
            self._crowned[record.route] = record.decided_at
        self.states = after
        state = after.of(record.route)
        if state.canary is None:
            self._epochs.pop(record.route, None)
        else:
            if state.first == offset:
                self._epochs[record.route] = {}
            self._epochs[record.route].setdefault(state.epoch, state)

    def epochs(self, route: str) -> dict[int, RouteState]:
        """The state that each epoch of the running canary began with, by number."""
        return self._epochs.get(route, {})

    def served_since(self, route: str) -> int:
        """When the present champion began to serve, microseconds since the epoch; 0 without one."""
        return self._crowned.get(route, 0)

    def history(self, route: str) -> Sequence[Written]:
        """Every record about a route, oldest first."""
        return [decision for decision in self.decisions if decision.record.route == route]


def read_fact(value: bytes | None) -> TrajectoryFacts | Watermark | None:
    """What a record of the topic `trajectories` says; None for one without a value.

    Raises:
        UndecodableError: it is neither.
        SchemaPendingError: the registry is away.
    """
    found: TrajectoryFacts | Watermark | None = codec.decode_any(value, (TrajectoryFacts, Watermark)) if value else None
    return found
