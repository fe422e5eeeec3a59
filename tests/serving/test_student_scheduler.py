"""Admission, batching and the prefix cache: pure, so properties over random histories."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.serving.student.prefix_tree import PrefixTree
from stillhouse.serving.student.scheduler import Limits, QueueFullError, Running, Scheduler


def sequence(key: int, prompt: tuple[int, ...] = (1, 2, 3), adapter: str = "", arrived: float = 0.0, max_new: int = 2) -> Running:
    return Running(key, adapter, prompt, max_new, arrived)


def nothing(running: Running) -> int:
    return 0


def test_a_lone_request_waits_for_company_but_not_longer() -> None:
    s = Scheduler(Limits(batch=2, wait_s=0.02))
    assert s.delay(0.0) is None
    s.add(sequence(1, arrived=10.0))
    assert s.delay(10.0) == pytest.approx(0.02)
    assert s.admit(10.01, nothing) == []
    assert [r.key for r in s.admit(10.02, nothing)] == [1]


def test_a_full_batch_or_a_running_one_waits_for_nobody() -> None:
    s = Scheduler(Limits(batch=2, wait_s=60.0))
    s.add(sequence(1))
    s.add(sequence(2))
    assert len(s.admit(0.0, nothing)) == 2
    s.add(sequence(3))
    assert s.admit(0.0, nothing) == []
    s.remove(1)
    assert [r.key for r in s.admit(0.0, nothing)] == [3]


def test_a_full_queue_says_when_to_come_back() -> None:
    s = Scheduler(Limits(queue=1))
    s.add(sequence(1))
    with pytest.raises(QueueFullError) as refused:
        s.add(sequence(2))
    assert refused.value.retry_after > 0


def test_who_shares_a_prefix_waits_for_it_but_not_for_another_adapters() -> None:
    s, head = Scheduler(Limits(wait_s=0.0, prefill_tokens=40)), tuple(range(100))
    for key, adapter in enumerate(["", "", "other"]):
        s.add(sequence(key, (*head, key), adapter))
    assert [r.key for r in s.admit(0.0, nothing)] == [0, 2]
    s.running[0].done = 40
    assert s.admit(0.0, nothing) == []
    s.running[0].done = 101
    assert [r.key for r in s.admit(0.0, nothing)] == [1]


def test_nobody_waits_for_a_prefix_that_was_cancelled() -> None:
    s, head = Scheduler(Limits(wait_s=0.0)), tuple(range(100))
    s.add(sequence(0, (*head, 0)))
    s.add(sequence(1, (*head, 1)))
    s.admit(0.0, nothing)
    s.remove(0)
    assert [r.key for r in s.admit(0.0, nothing)] == [1]


requests = st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=60).map(tuple), st.sampled_from(["", "a"]), st.integers(1, 3))


@given(st.lists(requests, max_size=12), st.integers(1, 4), st.integers(1, 50), st.lists(st.integers(0, 30), max_size=5))
def test_everything_asked_is_done_within_bounds(
    asked: list[tuple[tuple[int, ...], str, int]], batch: int, prefill: int, cancelled: list[int]
) -> None:
    s = Scheduler(Limits(batch=batch, wait_s=0.0, prefill_tokens=prefill, shared_tokens=4))
    for key, (prompt, adapter, max_new) in enumerate(asked):
        s.add(sequence(key, prompt, adapter, max_new=max_new))
    computed: dict[int, list[int]] = {key: [] for key in range(len(asked))}
    ended: set[int] = set()
    for step in range(2000):
        if s.delay(0.0) is None:
            break
        s.admit(0.0, nothing)
        rows = s.rows()
        assert rows, "work is left, but nothing runs"
        assert len(s.running) <= batch
        assert len({r.lane for r in s.running}) == len(s.running)
        assert all(0 <= r.lane < batch for r in s.running)
        assert sum(r.count for r in rows if r.sequence.prefilling) <= prefill
        for row in rows:
            q = row.sequence
            computed[q.key] += range(row.start, row.start + row.count)
            q.done += row.count
            if row.last:
                q.ids.append(9)
                if len(q.ids) - len(q.prompt) == q.max_new:
                    s.remove(q.key)
                    ended.add(q.key)
        if step < len(cancelled) and s.remove(cancelled[step]):
            ended.add(cancelled[step])
    assert ended == set(range(len(asked)))
    for key, positions in computed.items():
        assert positions == list(range(len(positions))), f"{key} computed a token twice or skipped one"


ids = st.lists(st.integers(0, 2), min_size=1, max_size=14).map(tuple)
Segment = tuple[int, ...]


def tree(limit: int) -> PrefixTree[Segment]:
    return PrefixTree(limit, 1, lambda segment, n: (segment[:n], segment[n:]))


@given(st.lists(st.tuples(st.sampled_from(["", "a"]), ids), max_size=25), st.integers(0, 40))
def test_what_is_found_is_what_was_stored_and_the_limit_holds(stored: list[tuple[str, Segment]], limit: int) -> None:
    t = tree(limit)
    for adapter, tokens in stored:
        t.insert(adapter, tokens, lambda a, b, tokens=tokens: tokens[a:b])  # type: ignore[misc]
        assert t.bytes <= limit
        found = [x for segment, n in t.match(adapter, tokens) for x in segment[:n]]
        assert found == list(tokens[: len(found)])
        assert len(found) == t.matched(adapter, tokens)
    for adapter in ("", "a"):
        t.drop(adapter)
    assert t.bytes == 0


@given(st.lists(ids, min_size=1, max_size=20), ids)
def test_without_a_limit_the_longest_common_prefix_is_found(stored: list[Segment], asked: Segment) -> None:
    t = tree(10**9)
    for tokens in stored:
        t.insert("", tokens, lambda a, b, tokens=tokens: tokens[a:b])  # type: ignore[misc]
    longest = max(next((i for i, (x, y) in enumerate(zip(s, asked, strict=False)) if x != y), min(len(s), len(asked))) for s in stored)
    assert t.matched("", asked) == longest
    assert t.matched("other", asked) == 0
    assert t.bytes == len({s[: i + 1] for s in stored for i in range(len(s))})


def test_what_was_used_longest_ago_goes_first() -> None:
    t = tree(6)
    for tokens in [(1, 1, 1), (2, 2, 2)]:
        t.insert("", tokens, lambda a, b, tokens=tokens: tokens[a:b])  # type: ignore[misc]
    t.match("", (1, 1, 1))
    t.insert("", (3, 3), lambda a, b: (3, 3)[a:b])
    assert [t.matched("", (x, x, x)) for x in (1, 2, 3)] == [3, 0, 2]
    assert t.evicted_tokens == 3
