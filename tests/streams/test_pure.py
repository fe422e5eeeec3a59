"""The pure parts of ingest: grouping and commits, limits, watermarks, scores."""

import socket
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.schemas.event_set import member
from stillhouse.schemas.events import Assignment, PolicyRole
from stillhouse.schemas.fold import fold
from stillhouse.schemas.messages import Message, ToolCall
from stillhouse.streams.ingest.limits import RatioLimit
from stillhouse.streams.ingest.open import Entry, OpenTrajectories
from stillhouse.streams.ingest.partitions import Partitions
from stillhouse.streams.ingest.records import Arrived
from stillhouse.streams.ingest.rows import Read, facts_of, row_of
from stillhouse.streams.ingest.slow import SlowLimits
from stillhouse.streams.lock import hold
from stillhouse.streams.score import score
from tests.support.events import event, fallback, step, trajectory

BIG = 1 << 40


def _arrived(number: int, place: int, offset: int, partition: int = 0, source: str = "s", size: int = 10) -> Arrived:
    one = trajectory(number)[place]
    return Arrived(one.key, member(one), partition, offset, size, source, 0)


MOVES = st.lists(st.tuples(st.sampled_from("radfl"), st.integers(0, 5), st.integers(0, 1)), max_size=60)


@given(MOVES)
def test_the_commit_never_passes_an_unstored_event(moves: list[tuple[str, int, int]]) -> None:
    """Whatever is read, flushed, failed or lost: bytes add up and the commit stays at or below the first unstored event."""
    opened, positions = OpenTrajectories(BIG, BIG), [0, 0]
    unstored: list[set[int]] = [set(), set()]
    taken: list[Entry] = []
    for move, number, partition in moves:
        if move in "ra":
            opened.add([_arrived(number, positions[partition] % 5, positions[partition], partition)], 0.0)
            unstored[partition].add(positions[partition])
            positions[partition] += 1
        elif move == "f" and not taken:
            opened.make_all_ready(0.0)
            taken = opened.take(number + 1, BIG)
        elif move == "d" and taken:
            opened.done(taken)
            for entry in taken:
                unstored[entry.partition] -= {arrived.offset for arrived in entry.events}
            taken = []
        elif move == "l":
            opened.lose(partition)
            unstored[partition].clear()
        for p in (0, 1):
            assert opened.commit_offset(p, positions[p]) == min(unstored[p], default=positions[p])
        assert opened.bytes == 10 * sum(map(len, unstored))


def test_complete_is_due_and_incomplete_waits_for_the_one_timer() -> None:
    opened = OpenTrajectories(BIG, BIG)
    opened.add([_arrived(1, place, place) for place in range(5)] + [_arrived(2, 0, 5)], now=10.0)
    assert (opened.due(10.0, 5, BIG, 2.0), opened.due(12.0, 5, BIG, 2.0), opened.due(10.0, 1, BIG, 2.0)) == ("", "time", "rows")
    assert [entry.key for entry in opened.take(9, BIG)] == ["acme/t-1"]
    assert (opened.park(309.0, 300.0), opened.park(310.0, 300.0)) == (0, 1)
    assert [entry.key for entry in opened.take(9, BIG)] == ["acme/t-2"]


def test_over_the_bound_the_oldest_go_of_all_and_of_a_source() -> None:
    opened = OpenTrajectories(35, BIG)
    opened.add([_arrived(n, 0, n) for n in range(5)], now=0.0)
    assert opened.over and opened.relieve(0.0) == 2
    assert [entry.key for entry in opened.take(9, BIG)] == ["acme/t-0", "acme/t-1"]
    opened = OpenTrajectories(BIG, 15)
    opened.add([_arrived(n, 0, n, source="ab"[n % 2]) for n in range(3)], now=0.0)
    assert opened.relieve(0.0) == 1
    assert [entry.key for entry in opened.take(9, BIG)] == ["acme/t-0"]


def test_a_source_over_the_ratio_is_closed_for_one_window() -> None:
    limit = RatioLimit(0.5, 10, 60.0)
    assert not limit.count("a", good=1, bad=8, now=0.0)
    assert limit.count("a", good=0, bad=1, now=1.0)
    assert (limit.closed("a", 60.9), limit.closed("a", 61.0), limit.closed("b", 2.0)) == (True, False, False)
    assert not limit.count("c", good=5, bad=5, now=0.0)
    assert not limit.count("d", good=0, bad=9, now=0.0)
    assert not limit.count("d", good=9, bad=2, now=100.0), "what is older than the window is forgotten"


def test_idle_sources_are_forgotten_and_closed_ones_are_not() -> None:
    limit = RatioLimit(0.5, 10, 60.0)
    for n in range(100):
        limit.count(f"once-{n}", good=1, bad=0, now=float(n))
    limit.count("good", good=1, bad=0, now=125.0)
    assert limit.count("bad", good=0, bad=10, now=140.0)
    limit.count("good", good=1, bad=0, now=190.0)
    assert set(limit._sources) == {"bad", "good"} and limit.closed("bad", 191.0)
    limit.count("good", good=1, bad=0, now=300.0)
    assert set(limit._sources) == {"good"}


def test_workers_of_two_machines_or_folders_have_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A static group fences nobody of the same name: both would read."""

    def name(folder: str, wanted: int | None = None) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        held = hold(tmp_path / folder, "ingest", wanted)
        held.release()
        return held.instance

    first = name("a")
    assert first == name("a") and first != name("b") and first.endswith("-0")
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    assert first != name("a")
    assert name("a", 3) == "3", "who asks for a number vouches for it"


def test_the_watermark_is_when_the_end_was_asked_for_if_that_was_read_and_the_last_append_time_before() -> None:
    found = Partitions()
    found.begin(3, position=5, end=8, committed=None)
    one = found[3]
    assert (one.committed, one.watermark) == (-1, 0)
    one.read(7, 100)
    assert one.watermark == 100
    one.confirm(9, asked=150)
    assert one.watermark == 100, "not read to the end of then"
    one.read(9, 120)
    assert (one.watermark, one.end) == (150, 9)
    one.confirm(9, asked=300)
    assert one.watermark == 300
    one.confirm(12, asked=400)
    one.read(10, 250)
    assert (one.watermark, one.end) == (300, 12), "it never goes back"
    one.read(13, 500)
    assert (one.watermark, one.end) == (500, 13)
    before = found[3]
    found.begin(3, 5, 9, 5)
    assert not found.current(before) and found.current(found[3])


def _said(content: str, **changes: object) -> Message:
    return Message(role="tool", tool_call_id="c", content=content, **changes)  # type: ignore[arg-type]


def test_scores_count_what_the_trajectory_itself_shows() -> None:
    same = Message(role="assistant", tool_calls=(ToolCall(id="x", name="f", arguments={"b": 1, "a": 2}),))
    again = Message(role="assistant", tool_calls=(ToolCall(id="y", name="f", arguments={"a": 2, "b": 1}),))
    broken = Message(role="assistant", tool_calls=(ToolCall(id="z", name="f", raw_arguments="{oops"),))
    bodies = [
        step(0, action=same, observation=(_said('{"error": "no such order"}'),)),
        step(1, action=again, observation=(_said("Error: no"),)),
        step(2, action=broken, observation=(_said("fine"),), error="timeout"),
        step(3, 7, observation=(_said('{"error": null}'),)),
        step(4, 8, observation=(_said("x", extra={"is_error": True}),)),
        step(5, 9, observation=(_said('{"error": broken'),)),
    ]
    found = score(fold(event(body, at=at) for at, body in enumerate(bodies)))
    assert (found.steps, found.error_steps, found.repeated_calls, found.format_errors) == (6, 4, 1, 1)
    assert (found.input_tokens, found.output_tokens) == (600, 60)


def test_a_students_format_error_counts_whether_the_teacher_answered_or_nobody() -> None:
    broken_off = msgspec.structs.replace(fallback(1, 3, at=9), event_id="alone")
    ended = trajectory(1)[:-1]
    found = score(fold([*ended, fallback(1, 1), broken_off]))
    assert (found.steps, found.format_errors) == (4, 2)
    facts = facts_of(row_of(fold([*ended, fallback(1, 1)]), [], None, Read(0, 0, 0, 0), slow_ms=1.0, stored_at=0))
    assert facts.occurred_at - facts.first_occurred_at == 3
    assert (facts.scores.format_errors, [p.role.value for p in facts.policies]) == (1, ["teacher", "student"])


def test_only_a_request_that_reached_a_student_is_one_that_it_failed() -> None:
    """Four steps of its arm: the teacher answered the first two because it was not ready yet, and the third because it was too slow."""
    arm = Assignment(route="desk", unit="u", experiment="desk", arm="canary", epoch=0)
    events = [msgspec.structs.replace(one, assignment=arm) for one in (*trajectory(1), fallback(1, 2, "timeout"), fallback(1, 3, at=9))]
    facts = facts_of(row_of(fold(events), [], None, Read(0, 0, 0, 0), slow_ms=1.0, stored_at=0))
    assert (facts.requests, facts.fallbacks, facts.student_failures, facts.scores.format_errors) == (4, 3, 1, 1)
    alone = fold([event for event in events if event.policy.role is not PolicyRole.TEACHER])
    assert len(alone.failures) == 1, "nobody answered in its place: it failed all the same"


def test_a_slow_request_is_one_that_its_route_calls_slow() -> None:
    limits = SlowLimits(10_000.0, {"desk": 200.0})
    assigned = Assignment(route="desk", unit="u", experiment="desk", arm="teacher", epoch=0)
    assert limits.of(None) == 10_000.0 and limits.of(assigned) == 200.0
    assert limits.of(msgspec.structs.replace(assigned, route="other")) == 10_000.0
