"""From grouping to rows without a broker: permutations, kills at each step, two workers, failures of one trajectory."""

import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from stillhouse.schemas.errors import PermanentError, UnreachableError
from stillhouse.schemas.event_set import member
from stillhouse.schemas.events import AgentEvent, Outcome
from stillhouse.schemas.fold import fold_set
from stillhouse.sdk.store import RowRef, Store
from stillhouse.streams.ingest import sink as sink_module
from stillhouse.streams.ingest.open import OpenTrajectories
from stillhouse.streams.ingest.records import Arrived
from stillhouse.streams.ingest.sink import Sink, units_of
from stillhouse.streams.ingest.steps import Step
from stillhouse.streams.instruments import Instruments
from stillhouse.streams.maintenance import Maintainer
from stillhouse.streams.settings import IngestSettings
from tests.support.events import fallback, feedback, step, trajectory
from tests.support.ingest import expected_hash


class Killed(Exception):
    """The process is gone: its memory with it."""


def _log(events: Iterable[AgentEvent], partitions: int = 2) -> list[list[Arrived]]:
    """Partitions of a log, each event in its trajectory's."""
    log: list[list[Arrived]] = [[] for _ in range(partitions)]
    for one in events:
        number = int(one.trajectory_id.rpartition("-")[2]) % partitions
        log[number].append(Arrived(one.key, member(one), number, len(log[number]), 500, "acme/sdk", 0))
    return log


def _ingest(store: Store, log: list[list[Arrived]], rng: random.Random, kills: int) -> None:
    """Steps 1 to 7 over a log, killed at steps that the seed chooses; a kill drops memory and goes back to the commits."""
    committed = [0] * len(log)
    while True:
        left = rng.randrange(1, 12) if kills > 0 else -1

        def reached(step_: Step) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        try:
            _one_life(Sink(store, lambda: 0, reached=reached), log, committed, rng)
            return
        except Killed:
            kills -= 1


def _one_life(sink: Sink, log: list[list[Arrived]], committed: list[int], rng: random.Random) -> None:
    opened, positions = OpenTrajectories(6000, 6000), list(committed)
    while any(position < len(part) for position, part in zip(positions, log, strict=True)) or len(opened):
        for number, part in enumerate(log):
            batch = part[positions[number] : positions[number] + rng.randrange(1, 30)]
            opened.add(batch, now=0.0)
            positions[number] += len(batch)
        opened.relieve(0.0)
        if all(position == len(part) for position, part in zip(positions, log, strict=True)):
            opened.make_all_ready(0.0)
        entries = opened.take(rng.randrange(1, 9), 1 << 20)
        sink.write(units_of(entries))
        opened.done(entries)
        for number in range(len(log)):
            committed[number] = opened.commit_offset(number, positions[number])


def test_thirty_permutations_with_duplicates_feedback_and_kills_give_one_table_hash(tmp_path: Path) -> None:
    events = [e for n in range(8) for e in [*trajectory(n, steps=2), feedback(n, Outcome.FAILURE)]]
    events += [fallback(n, 1) for n in range(0, 8, 2)]
    events.append(AgentEvent(event_id="late", tenant="acme", trajectory_id="t-1", occurred_at=events[0].occurred_at + 70, body=step(1, 9)))
    wanted, seen = expected_hash(tmp_path / "expected", events), set()
    for seed in range(30):
        rng = random.Random(seed)
        shuffled = [*events, *rng.choices(events, k=8)]
        rng.shuffle(shuffled)
        store = Store.open(tmp_path / str(seed))
        _ingest(store, _log(shuffled), rng, kills=3)
        seen.add(store.table_hash())
    assert seen == {wanted}
    errors = {row["key"]: row["format_errors"] for row in store.trajectories()}
    assert errors == {f"acme/t-{n}": int(n % 2 == 0) for n in range(8)}


def _units(*runs: Iterable[AgentEvent]) -> list[sink_module.Unit]:
    opened = OpenTrajectories(1 << 30, 1 << 30)
    for part in _log([e for run in runs for e in run]):
        opened.add(part, 0.0)
    opened.make_all_ready(0.0)
    return units_of(opened.take(1000, 1 << 30))


def test_a_row_that_changed_between_read_and_write_is_folded_again(store: Store, tmp_path: Path) -> None:
    events = trajectory(1)
    other = Sink(store, lambda: 0)

    def meanwhile(step_: Step) -> None:
        if step_ == "chunks" and not store.trajectories():
            other.write(_units(events[:2]))

    stored = Sink(store, lambda: 0, reached=meanwhile).write(_units(events[2:]))
    assert stored.conflicts == 1
    assert store.table_hash() == expected_hash(tmp_path / "expected", events)


def test_a_failure_is_one_trajectorys_and_a_retry_folds_again(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, good = [trajectory(n) for n in range(9)], fold_set

    def poisoned(members: object, **kw: object) -> object:
        found = good(members, **kw)  # type: ignore[arg-type]
        if found.key == "acme/t-4":
            raise ValueError("poison")
        return found

    monkeypatch.setattr(sink_module, "fold_set", poisoned)
    Sink(store, lambda: 0).write(_units(*runs))
    rows = {row["key"]: row for row in store.trajectories()}
    assert len(rows) == 9
    assert [key for key, row in rows.items() if row["status"] == "failed"] == ["acme/t-4"]
    assert "poison" in rows["acme/t-4"]["status_reason"]
    monkeypatch.undo()
    Sink(store, lambda: 0).write(_units(runs[4]))
    assert store.table_hash() == expected_hash(tmp_path / "expected", [e for run in runs for e in run])


def test_a_store_that_is_away_is_not_a_failure_of_a_trajectory(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> int:
        raise UnreachableError("away")

    monkeypatch.setattr(store, "insert_if_absent", away)
    with pytest.raises(UnreachableError):
        Sink(store, lambda: 0).write(_units(trajectory(1)))
    assert store.trajectories() == []


def test_windows_read_rows_as_they_were(store: Store) -> None:
    events = trajectory(1)
    sink = Sink(store, lambda: 0)
    sink.write(_units(events[:3]))
    row = store.trajectories()[0]
    ref = RowRef(key=row["key"], revision=row["revision"], content=row["content"], chunks=tuple(row["chunks"]))
    sink.write(_units(events[3:]))
    assert len(store.load_at([ref])["acme/t-1"].steps) == 2
    assert len(store.load(["acme/t-1"])["acme/t-1"].steps) == 3
    assert store.events("acme/t-1") == events
    with pytest.raises(PermanentError, match="chunk"):
        store.load_at([RowRef(key="acme/t-1", revision=1, content="x", chunks=("absent",))])


def test_bookkeeping_can_be_set_to_any_value_that_its_column_holds(store: Store) -> None:
    Sink(store, lambda: 0).write(_units(trajectory(1)))
    values: dict[str, object] = {"chunks": [], "policies": [], "subject": "o'neill", "reward": None, "headless": True, "stored_at": 7}
    store.update("trajectories", "acme/t-1", values)
    assert store.rows("trajectories", columns=[*values]) == [values]
    store.update("trajectories", "acme/t-1", {"chunks": ["a", "b"], "policies": [{"role": "human"}]})
    assert store.rows("trajectories", columns=["chunks", "policies"]) == [{"chunks": ["a", "b"], "policies": [{"role": "human"}]}]


def test_maintenance_keeps_rows_and_sweeps_only_old_orphans(store: Store) -> None:
    now = 10**15
    Sink(store, lambda: now).write(_units(trajectory(1), trajectory(2)))
    orphan = {"trajectory": "acme/t-1", "events": b"\x90", "count": 0}
    day = 90_000_000_000
    store.insert_if_absent("transcripts", [orphan | {"key": "old", "stored_at": now - day}, orphan | {"key": "young", "stored_at": now}])
    before = store.table_hash()
    keeper = Maintainer(store, IngestSettings(), Instruments("stillhouse_"), "a", lambda: [], lambda: now)
    assert keeper.once()
    assert store.table_hash() == before
    chunks = {row["key"] for row in store.rows("transcripts", columns=["key"])}
    assert len(chunks) == 3 and "young" in chunks and "old" not in chunks
    assert not Maintainer(store, IngestSettings(), Instruments("stillhouse_"), "b", lambda: [], lambda: now + 1).once()
    assert Maintainer(store, IngestSettings(), Instruments("stillhouse_"), "b", lambda: [], lambda: now + 601_000_000).once()
