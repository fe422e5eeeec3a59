"""Dead letters in numbers: no more than a batch of them is in memory, and a full client is waited for."""

import gc
from collections.abc import Iterator
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import Producer

from stillhouse.schemas.topics import DLQ
from stillhouse.sdk.kafka import confluent_producer_args, topic_name
from stillhouse.streams import dlq
from tests.support.ingest import Topics


@pytest.fixture
def letters(topics: Topics) -> Iterator[Topics]:
    """Topics with sixty dead letters, every third with the reason "b"."""
    producer: Any = Producer(confluent_producer_args(topics.kafka))
    for n in range(60):
        reason = "ab"[n % 3 == 0]
        headers = dlq.headers_of(
            [], stage="decode", reason=reason, detail="", topic=topics.events, partition=0, offset=n, key=b"acme/%d" % n
        )
        producer.produce(topic_name(topics.kafka, DLQ), b"%d" % n * 100, key=dlq.key_of(topics.events, 0, n), headers=headers)
    assert producer.flush(30) == 0
    yield topics


def test_a_retry_of_more_than_the_client_holds_sends_each_once_in_batches(letters: Topics, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Small(Producer):
        def __init__(self, settings: dict[str, Any]) -> None:
            super().__init__(settings | {"queue.buffering.max.messages": 4})
            self.flushes = self.refused = 0
            made.append(self)

        def produce(self, *args: Any, **kw: Any) -> None:
            try:
                super().produce(*args, **kw)
            except BufferError:
                self.refused += 1
                raise

        def flush(self, *args: Any) -> Any:
            self.flushes += 1
            return super().flush(*args)

    monkeypatch.setattr(confluent_kafka, "Producer", Small)
    monkeypatch.setattr(dlq, "BATCH", 10)
    assert dlq.retry(letters.kafka, lambda entry: entry.reason == "a") == 40
    (producer,) = made
    assert producer.refused and producer.flushes == 10, "four batches and an empty one, each sent and marked"
    sent = letters.read("agent.events")
    assert sorted(message.value() for message in sent) == sorted(b"%d" % n * 100 for n in range(60) if n % 3)
    assert dlq.retry(letters.kafka, lambda entry: entry.reason == "a") == 0
    assert {entry.reason for entry in dlq.entries(letters.kafka) if entry.retried} == {"a"}


def _alive() -> int:
    return sum(type(one) is dlq.Entry for one in gc.get_objects())  # isinstance asks every object's __class__, and some answer oddly


def test_what_is_not_chosen_is_not_kept_while_reading(letters: Topics, monkeypatch: pytest.MonkeyPatch) -> None:
    before, most, read = _alive(), 0, dlq._read

    def watched(settings: Any) -> Iterator[Any]:
        nonlocal most
        for place, message in enumerate(read(settings)):
            if place % 20 == 19:  # looking at every object takes a while
                most = max(most, _alive() - before)
            yield message

    monkeypatch.setattr(dlq, "_read", watched)
    assert dlq.retry(letters.kafka, lambda entry: entry.reason == "none") == 0
    assert most <= 2
    newest = dlq.entries(letters.kafka, limit=3)
    assert most <= 8
    monkeypatch.setattr(dlq, "_read", read)
    assert newest == dlq.entries(letters.kafka)[:3]
    assert dlq.show(letters.kafka, newest[0].key) == newest[0]
