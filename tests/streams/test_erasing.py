"""Erasure against everything that may come in between: a flush under way, a row that cannot be folded, what a crash left."""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.schemas import codec
from stillhouse.schemas.event_set import member
from stillhouse.schemas.events import AgentEvent, Body, Outcome, Task, TrajectoryStarted
from stillhouse.schemas.facts import Erasure
from stillhouse.schemas.registry import TopicResolver
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.sdk.store import Row, Store
from stillhouse.streams.ingest import sink as sink_module
from stillhouse.streams.ingest.chores import DAY, Chores
from stillhouse.streams.ingest.erasing import erase
from stillhouse.streams.ingest.follow import Erasures
from stillhouse.streams.ingest.rows import Read, unfolded
from stillhouse.streams.ingest.sink import Sink, Unit
from stillhouse.streams.ingest.steps import Step
from tests.support.events import feedback, step, trajectory


def run(number: int, subject: str | None = "s1") -> list[AgentEvent]:
    events = trajectory(number, steps=2)
    started = msgspec.structs.replace(events[0].body, subject=subject)
    return [msgspec.structs.replace(events[0], body=started), *events[1:]]


def unit(events: Iterable[AgentEvent]) -> Unit:
    members = {one.digest: one for one in map(member, events)}
    return Unit(next(iter(members.values())).event.key, members, Read(0, 0, 9, 5))


def ask(erasures: Erasures, subject: str = "s1") -> None:
    erasures.read(codec.encode(Erasure(tenant="acme", subject=subject, requested_at=1)))


def row(store: Store, key: str = "acme/t-1") -> Row:
    return store.by_key("trajectories", [key])[key]


def chunks(store: Store) -> list[Row]:
    return store.rows("transcripts", columns=["key", "trajectory"])


def chores(store: Store, erasures: Erasures, now: Callable[[], int] = lambda: 0) -> Chores:
    made = Chores(KafkaSettings(), store, erasures, TopicResolver(), TopicResolver(), "test", now)
    made._due = lambda: False  # type: ignore[method-assign]  # no broker here: dead letters are another test's
    return made


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ValueError("poison")

    monkeypatch.setattr(sink_module, "fold_set", broken)


@pytest.mark.parametrize("at", ["read", "chunks", "rows"])
def test_an_erasure_that_is_carried_out_during_a_flush_reaches_its_row(at: Step, store: Store) -> None:
    erasures = Erasures()
    keeper = chores(store, erasures)

    def meanwhile(reached: Step) -> None:
        if reached == at:
            ask(erasures)
            keeper.once()  # reads the table before, or after, the row is in it

    stored = Sink(store, lambda: 7, erased=erasures, reached=meanwhile).write([unit(run(1)), unit(run(2, "s2"))])
    gone, kept = row(store), row(store, "acme/t-2")
    assert (gone["content"], gone["status_reason"], gone["chunks"], gone["instruction"]) == ("erased", "erased", [], None)
    assert kept["status"] == "ended"
    assert [chunk["trajectory"] for chunk in chunks(store)] == ["acme/t-2"]
    assert {one["key"]: one["content"] == "erased" for one in stored.rows} == {"acme/t-1": True, "acme/t-2": False}


def test_a_row_that_was_written_before_an_interrupted_erasure_goes_with_the_next_attempt(store: Store) -> None:
    Sink(store, lambda: 7).write([unit(run(1))])
    erasures = Erasures()
    ask(erasures)
    stored = Sink(store, lambda: 7, erased=erasures).write([unit(run(1))])  # nothing new, and yet it must go
    assert [one["content"] for one in stored.written] == ["erased"] and chunks(store) == []


def test_all_erasures_are_carried_out_again_every_day(store: Store) -> None:
    erasures, now = Erasures(), [10 * DAY]
    ask(erasures)
    ask(erasures, "o'neill")
    keeper = chores(store, erasures, lambda: now[0])
    keeper.once()
    Sink(store, lambda: 0).write([unit(run(1)), unit(run(2, "o'neill")), unit(run(3, "s3"))])  # by a writer who did not know
    now[0] += DAY - 1
    keeper.once()
    assert {one["content"] == "erased" for one in store.trajectories()} == {False}
    now[0] += 1
    keeper.once()
    assert {one["key"]: one["content"] == "erased" for one in store.trajectories()} == {
        "acme/t-1": True,
        "acme/t-2": True,
        "acme/t-3": False,
    }
    store.insert_if_absent("transcripts", [{"key": "left", "trajectory": "acme/t-1", "events": b"\x90", "count": 0, "stored_at": now[0]}])
    now[0] += DAY
    keeper.once()
    assert [chunk["trajectory"] for chunk in chunks(store)] == ["acme/t-3"]


def test_a_row_that_cannot_be_folded_still_says_whose_it_is_and_can_be_erased(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    Sink(store, lambda: 7).write([unit(run(1))])
    failed = row(store)
    assert (failed["status"], failed["subject"], failed["agent"]) == ("failed", "s1", "desk")
    assert (failed["task_id"], failed["family"]) == ("task-1", "refund")
    assert erase(store, "acme", ["s1"], 8) == 1
    assert (row(store)["content"], chunks(store)) == ("erased", [])


def test_a_stored_row_that_can_be_folded_no_longer_keeps_whose_it_is(store: Store) -> None:
    Sink(store, lambda: 7).write([unit(run(1))])
    store.delete("transcripts", "true")  # its chunk is lost: the row is all that says anything
    Sink(store, lambda: 7).write([unit([feedback(1, Outcome.FAILURE)])])
    failed = row(store)
    assert "chunk" in failed["status_reason"]
    assert (failed["subject"], failed["task_id"], failed["family"], failed["agent"]) == ("s1", "task-1", "refund", "desk")
    erasures = Erasures()
    ask(erasures)
    Sink(store, lambda: 7, erased=erasures).write([unit([feedback(1, Outcome.SUCCESS)])])
    assert (row(store)["content"], chunks(store)) == ("erased", [])


def test_what_cannot_be_folded_of_an_erased_subject_is_a_tombstone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    erasures = Erasures()
    ask(erasures)
    Sink(store, lambda: 7, erased=erasures).write([unit(run(1))])
    assert (row(store)["content"], row(store)["instruction"], chunks(store)) == ("erased", None, [])


@settings(max_examples=30)
@given(st.permutations(range(4)), st.none() | st.just("before"))
def test_whose_it_is_does_not_depend_on_the_order_of_its_events(order: list[int], before: str | None) -> None:
    bodies: list[Body] = [TrajectoryStarted(subject="old"), TrajectoryStarted(subject="new", task=Task(id="n")), step(0), step(1)]
    events = [
        AgentEvent(event_id=f"e{n}", tenant="acme", trajectory_id="t", occurred_at=n, body=body, agent=f"a{n}")
        for n, body in enumerate(bodies)
    ]
    members = {one.digest: one for one in (member(events[n]) for n in order)}
    previous = {"subject": before, "agent": None}
    found = unfolded("acme/t", members, previous, erased=lambda _: False)
    assert (found.subject, found.task.id, found.agent, found.revision) == ("new", "n", "a0", 4)
    assert unfolded("acme/t", members, previous, erased=lambda subject: subject == "new").content == "erased"
    unnamed = {digest: one for digest, one in members.items() if not isinstance(one.event.body, TrajectoryStarted)}
    assert unfolded("acme/t", unnamed, previous, erased=lambda _: False).subject == before


def test_an_erasure_survives_any_name(store: Store) -> None:
    Sink(store, lambda: 7).write([unit(run(1, "o'neill' OR 'a'='a")), unit(run(2, "s2"))])
    assert erase(store, "acme", ["o'neill' OR 'a'='a"], 8) == 1
    assert row(store, "acme/t-2")["status"] == "ended"
