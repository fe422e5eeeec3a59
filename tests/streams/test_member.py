"""The group member when the broker fails it for a moment: it goes on as soon as that is over."""

from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaTimeoutError, OffsetOutOfRangeError

from stillhouse.schemas.errors import PermanentError, UnreachableError
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.streams.ingest.consumer import Member
from stillhouse.streams.ingest.partitions import Partitions
from stillhouse.streams.settings import IngestSettings

PLACES = [TopicPartition("events", 0), TopicPartition("events", 1)]


class Broker:
    """What `Member` asks of aiokafka's consumer; fails as told."""

    def __init__(self) -> None:
        self.commits: dict[int, int | None] = {0: 5, 1: 7}
        self.ends = 10
        self.failures: list[BaseException] = []
        self.sought: dict[int, int] = {}

    def _fail(self) -> None:
        if self.failures:
            raise self.failures.pop(0)

    async def committed(self, place: TopicPartition) -> int | None:
        self._fail()
        return self.commits[place.partition]

    async def beginning_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, 0)

    async def end_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        self._fail()
        return dict.fromkeys(places, self.ends)

    async def getmany(self, **_: Any) -> dict[TopicPartition, list[Any]]:
        self._fail()
        return {}

    def seek(self, place: TopicPartition, offset: int) -> None:
        self.sought[place.partition] = offset


async def _nothing() -> None:
    return None


def _member(broker: Broker, on_revoked: Any = _nothing, **settings: Any) -> tuple[Member, Partitions]:
    books = Partitions()
    member = Member(KafkaSettings(), IngestSettings(**settings), "events", 0, books, on_revoked, lambda number: None)
    member._consumer = broker
    return member, books


async def test_a_timeout_during_an_assignment_is_over_when_the_broker_answers() -> None:
    broker = Broker()
    member, books = _member(broker)
    broker.failures = [KafkaTimeoutError(), KafkaTimeoutError()]
    await member.on_partitions_assigned(PLACES)
    assert not member.joined
    with pytest.raises(UnreachableError):
        await member.records(0, 1)
    assert not member.joined and books.numbers() == []
    assert await member.records(0, 1) == []
    assert member.joined and books.numbers() == [0, 1] and broker.sought == {0: 5, 1: 7}


async def test_another_assignment_forgets_what_was_not_begun_of_the_one_before() -> None:
    broker = Broker()
    member, books = _member(broker)
    broker.failures = [KafkaTimeoutError()]
    await member.on_partitions_assigned(PLACES)
    await member.on_partitions_assigned(PLACES[1:])
    assert member.joined and books.numbers() == [1]
    assert await member.records(0, 1) == []
    assert broker.sought == {1: 7}


async def test_a_reset_that_times_out_is_tried_again() -> None:
    broker = Broker()
    member, books = _member(broker, lost_offsets="earliest")
    await member.on_partitions_assigned(PLACES)
    broker.ends = 3
    broker.failures = [OffsetOutOfRangeError({PLACES[0]: 5}), KafkaTimeoutError()]
    with pytest.raises(UnreachableError):
        await member.records(0, 1)
    await member.records(0, 1)
    assert broker.sought == {0: 0, 1: 7} and books[0].position == 0


async def test_what_only_a_person_can_mend_stays() -> None:
    broker = Broker()
    broker.commits[0] = 99
    member, _ = _member(broker, lost_offsets="stop")
    for _ in range(2):
        await member.on_partitions_assigned(PLACES)
        with pytest.raises(PermanentError, match="deleted"):
            await member.records(0, 1)
    assert not member.joined


async def test_a_flush_that_could_not_be_done_before_a_rebalance_ends_nothing() -> None:
    async def away() -> None:
        raise UnreachableError("away")

    member, _ = _member(Broker(), away)
    await member.on_partitions_revoked(PLACES)
    await member.on_partitions_assigned(PLACES)
    assert await member.records(0, 1) == [] and member.joined


async def test_ends_are_asked_for_and_stay_without_an_answer() -> None:
    broker = Broker()
    broker.commits = {0: 10, 1: 7}
    member, books = _member(broker)
    await member.refresh_ends(50)
    await member.on_partitions_assigned(PLACES)
    await member.refresh_ends(100)
    assert [one.watermark for one in books] == [100, 0]
    broker.failures = [KafkaTimeoutError()]
    with pytest.raises(UnreachableError):
        await member.refresh_ends(200)
    assert [one.watermark for one in books] == [100, 0]
    broker.ends = 11
    await member.refresh_ends(300)
    assert [(one.watermark, one.end) for one in books] == [(100, 11), (0, 11)]
