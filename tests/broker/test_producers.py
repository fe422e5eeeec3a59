"""Idempotent producers: whatever is repeated, delayed or dropped on the way, the log has every batch once and in order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.broker.batch import Batch
from stillhouse.broker.errors import KafkaError
from stillhouse.broker.producers import IDLE_MS, REMEMBERED, Producers


def batch(sequence: int, records: int = 1, *, epoch: int = 0, producer: int = 1) -> Batch:
    return Batch(0, 100, 0, 2, 0, 0, records - 1, 0, 0, producer, epoch, sequence, records)


@given(st.lists(st.integers(0, 11), max_size=80), st.lists(st.integers(1, 5), min_size=12, max_size=12))
def test_each_batch_is_stored_once_and_in_order(arrivals: list[int], sizes: list[int]) -> None:
    """Batches 0 to 11 arrive in any order, any number of times."""
    producers, stored = Producers(), list[int]()
    first = [sum(sizes[:number]) for number in range(12)]
    for number in (0, *arrivals):
        arriving = batch(first[number], sizes[number])
        try:
            repeat = producers.repeated(arriving)
        except KafkaError:
            assert number > len(stored) or number < len(stored) - REMEMBERED, "only gaps and long forgotten repeats are refused"
            continue
        if repeat is None:
            assert number == len(stored)
            producers.stored(arriving, 1000 + first[number], -1, 0)
            stored.append(number)
        else:
            assert repeat == (1000 + first[number], -1) and number in stored
        restored = Producers()
        restored.restore(producers.snapshot())
        assert restored.snapshot() == producers.snapshot()
        producers = restored


def test_sequences_wrap() -> None:
    producers = Producers()
    producers.stored(batch(2**31 - 2, 2), 0, -1, 0)
    assert producers.repeated(batch(0)) is None
    with pytest.raises(KafkaError, match="0 is next"):
        producers.repeated(batch(1))


def test_a_plain_producer_is_not_remembered_and_an_idle_one_is_forgotten() -> None:
    producers = Producers()
    producers.stored(batch(-1, producer=-1), 0, -1, 0)
    producers.stored(batch(0), 0, -1, 0)
    producers.forget_idle(IDLE_MS)
    assert list(producers.known) == [1]
    producers.forget_idle(IDLE_MS + 1)
    assert not producers.known
    assert producers.repeated(batch(77)) is None, "Kafka takes any first sequence of one it does not know"
