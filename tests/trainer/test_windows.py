"""Windows: which rows, which mode, claimed once, moved by compare-and-set."""

from pathlib import Path

import msgspec
import pytest

from stillhouse.schemas.errors import PermanentError, RetryableError, UsageError
from stillhouse.schemas.events import Outcome
from stillhouse.schemas.ledger import TaskText
from stillhouse.sdk.ledger import store_ledger
from stillhouse.trainer import windows
from stillhouse.trainer.curate.draw import Quota
from stillhouse.trainer.decisions import Erasures
from stillhouse.trainer.settings import CurationSettings
from stillhouse.trainer.windows_pool import PoolRow, due, family_weights, pool_of
from stillhouse.trainer.windows_types import State, WindowRow
from tests.trainer.curation_factory import WordCounter
from tests.trainer.window_factory import SETTINGS, Desk, erase, measured, put, trajectory, with_changes

CONTINUES = with_changes(SETTINGS, max_tokens=1)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def registered(desk: Desk, count: int, first: int = 0, **facts: object) -> str:
    put(desk.store, [trajectory(i) for i in range(first, first + count)], first * 10)
    result = desk.job(CONTINUES, evaluate=measured(**facts)).run(windows.plan(desk.store, CONTINUES))
    assert result.state is State.REGISTERED, result.reason
    return result.student


def keys(rows: tuple[WindowRow, ...]) -> list[str]:
    return [r.key for r in rows]


def test_a_first_window_takes_all_rows_oldest_first_and_starts_fresh(desk: Desk) -> None:
    put(desk.store, [trajectory(i) for i in (3, 1, 2)], 100)
    planned = windows.plan(desk.store, SETTINGS)
    assert keys(planned.rows) == ["shop/r001", "shop/r002", "shop/r003"]
    assert (planned.key, planned.mode, planned.previous, planned.again) == ("default-000001", "fresh", None, ())
    assert planned.offsets == {1: (100, 123)}
    assert windows.list_windows(desk.store) == []


def test_families_and_bounds_narrow_a_plan(desk: Desk) -> None:
    put(desk.store, [trajectory(i) for i in range(8)])
    assert keys(windows.plan(desk.store, SETTINGS, families=["a"]).rows) == [f"shop/r00{i}" for i in (0, 2, 4, 6)]
    assert len(windows.plan(desk.store, with_changes(SETTINGS, max_rows=3)).rows) == 3
    quota = windows.plan(desk.store, SETTINGS, size=2, weights={"a": 1.0}).quota
    assert quota == Quota(size=2, weights={"a": 1.0})


def test_one_process_claims_and_the_next_plan_waits(desk: Desk) -> None:
    put(desk.store, [trajectory(1)])
    planned = windows.plan(desk.store, SETTINGS)
    assert windows.claim(desk.store, planned).state is State.CLAIMED
    with pytest.raises(RetryableError, match="claimed by another"):
        windows.claim(desk.store, planned)
    with pytest.raises(UsageError, match="still claimed"):
        windows.plan(desk.store, SETTINGS)
    assert windows.plan(desk.store, SETTINGS, lineage="other").number == 1


def test_an_empty_window_is_not_claimed(desk: Desk) -> None:
    with pytest.raises(UsageError, match="nothing new"):
        windows.claim(desk.store, windows.plan(desk.store, SETTINGS))


def test_states_move_one_way_and_by_one_process(desk: Desk) -> None:
    put(desk.store, [trajectory(1)])
    claimed = windows.claim(desk.store, windows.plan(desk.store, SETTINGS))
    with pytest.raises(PermanentError, match="from claimed to trained"):
        windows.advance(desk.store, claimed, State.TRAINED)
    rejected = windows.advance(desk.store, claimed, State.REJECTED, reason="by hand")
    with pytest.raises(RetryableError, match="another process"):
        windows.advance(desk.store, claimed, State.CURATED)
    with pytest.raises(PermanentError):
        windows.advance(desk.store, rejected, State.REJECTED)
    assert windows.show(desk.store, claimed.key) == rejected
    with pytest.raises(UsageError, match="no such window"):
        windows.show(desk.store, "nope")


def test_a_lineage_trains_on_a_row_once_and_replays_what_it_learned(desk: Desk) -> None:
    student = registered(desk, 20)
    put(desk.store, [trajectory(i) for i in range(20, 30)], 200)
    planned = windows.plan(desk.store, CONTINUES)
    assert (planned.mode, planned.parent, planned.previous) == ("continue", student, "default-000001")
    assert keys(planned.rows) == [f"shop/r{i:03d}" for i in range(20, 30)]
    first = windows.show(desk.store, "default-000001").curated
    assert first is not None
    replayed = [k for k in keys(planned.again) if k in first.trained]
    assert len(replayed) == 5 and set(keys(planned.again)) - set(replayed) == set(first.validation)
    assert planned.quota == Quota(replay=0.5, salt="default-000002")


def test_rows_of_a_rejected_window_return_to_the_pool(desk: Desk) -> None:
    put(desk.store, [trajectory(i) for i in range(5)])
    claimed = windows.claim(desk.store, windows.plan(desk.store, SETTINGS))
    windows.advance(desk.store, claimed, State.REJECTED, reason="worse")
    again = windows.plan(desk.store, SETTINGS)
    assert (again.number, len(again.rows)) == (2, 5)


def test_the_next_window_follows_the_best_student_and_gets_back_what_a_worse_one_used(desk: Desk) -> None:
    best = registered(desk, 20, success=0.9)
    registered(desk, 10, first=20, success=0.5)
    planned = windows.plan(desk.store, CONTINUES)
    assert planned.parent == best and keys(planned.rows) == [f"shop/r{i:03d}" for i in range(20, 30)]
    other = windows.plan(desk.store, CONTINUES, barred={best})
    assert other.previous == "default-000002"


def test_a_small_pool_starts_fresh_with_all_of_it(desk: Desk) -> None:
    registered(desk, 20)
    put(desk.store, [trajectory(30)], 400)
    planned = windows.plan(desk.store, SETTINGS)
    first = windows.show(desk.store, "default-000001").curated
    assert first is not None
    assert planned.mode == "fresh" and planned.quota is None
    assert set(keys(planned.again)) == {*first.trained, *first.validation}


def test_every_so_many_windows_start_fresh(desk: Desk) -> None:
    registered(desk, 20)
    put(desk.store, [trajectory(30)], 400)
    assert windows.plan(desk.store, with_changes(CONTINUES, fresh_every=2)).mode == "continue"
    assert windows.plan(desk.store, with_changes(CONTINUES, fresh_every=1)).mode == "fresh"


@pytest.mark.parametrize("how", ["erased", "revised"])
def test_an_erased_or_revised_row_starts_fresh_without_it(desk: Desk, how: str) -> None:
    registered(desk, 20)
    facts = windows.show(desk.store, "default-000001").curated
    assert facts is not None
    gone = min(facts.trained)
    if how == "erased":
        erase(desk.store, gone)
    else:
        put(desk.store, [trajectory(int(gone[-3:]), Outcome.FAILURE)])
    planned = windows.plan(desk.store, CONTINUES)
    assert planned.mode == "fresh" and "erased or revised" in planned.why and planned.parent is None
    assert gone not in keys(planned.again)
    assert (gone in keys(planned.rows)) is (how == "revised")
    with pytest.raises(UsageError, match="no student to continue"):
        windows.plan(desk.store, CONTINUES, mode="continue")


def test_a_subject_to_be_forgotten_counts_as_erased_before_ingest_is_there(desk: Desk) -> None:
    put(desk.store, [trajectory(i, subject=f"s{i}") for i in range(20)])
    first = desk.job(CONTINUES).run(windows.plan(desk.store, CONTINUES))
    facts = windows.show(desk.store, first.window).curated
    assert facts is not None
    gone = min(facts.trained)
    asked = Erasures(offset=4, subjects=frozenset({("shop", f"s{int(gone[-3:])}"), ("other", "s1"), ("other", "s2")}))
    put(desk.store, [trajectory(30)], 400)
    assert windows.plan(desk.store, CONTINUES).mode == "continue"
    planned = windows.plan(desk.store, CONTINUES, erasures=asked)
    assert planned.mode == "fresh" and "erased or revised" in planned.why and planned.parent is None
    assert gone not in keys((*planned.rows, *planned.again))


def test_failure_rates_of_the_parent_steer_the_next_window(desk: Desk) -> None:
    registered(desk, 20, failure_rates={"a": 0.0})
    put(desk.store, [trajectory(i) for i in range(20, 24)], 200)
    quota = windows.plan(desk.store, CONTINUES, size=2).quota
    assert quota is not None and quota.weights == {"a": 0.3, "b": 1.3}
    assert family_weights({"a": 0.2}, ["b", "a"], 0.5) == {"a": 0.7, "b": 1.5}


def test_curating_a_plan_twice_gives_one_manifest(desk: Desk) -> None:
    put(desk.store, [trajectory(i) for i in range(30)])
    planned = windows.plan(desk.store, SETTINGS)
    hashes = set()
    for _ in range(2):
        curated = windows.curate_plan(desk.store, planned, SETTINGS, WordCounter())
        hashes.add(curated.manifest_hash)
    store_ledger(desk.store, curated.added)
    hashes.add(windows.curate_plan(desk.store, planned, SETTINGS, WordCounter()).manifest_hash)
    assert len(hashes) == 1
    with pytest.raises(RetryableError, match="another planner"):
        store_ledger(desk.store, curated.added)


def test_what_others_place_later_changes_a_windows_notes_and_not_its_manifest(desk: Desk) -> None:
    put(desk.store, [trajectory(0)])
    planned = windows.plan(desk.store, SETTINGS)
    first = windows.curate_plan(desk.store, planned, SETTINGS, WordCounter())
    store_ledger(desk.store, first.added)
    others = [TaskText(tenant="shop", family="a", task_key=f"other-{i}", text=f"Refund {i}") for i in range(60)]
    store_ledger(desk.store, first.ledger.assign(others).added(first.ledger))
    later = windows.curate_plan(desk.store, planned, SETTINGS, WordCounter())
    assert first.waterfall.notes and not later.waterfall.notes
    assert first.manifest_hash == later.manifest_hash


def test_a_row_erased_after_planning_stops_the_curation(desk: Desk) -> None:
    put(desk.store, [trajectory(1)])
    planned = windows.plan(desk.store, SETTINGS)
    desk.store.delete("transcripts", "trajectory = 'shop/r001'")
    with pytest.raises(PermanentError, match="missing"):
        windows.curate_plan(desk.store, planned, CurationSettings(), WordCounter())


def test_when_a_window_is_due() -> None:
    def rows(count: int, at: int, teaches: bool = True) -> list[PoolRow]:
        return [
            PoolRow(row=WindowRow(key=f"k{i}", revision=1, content="c", chunks=()), teaches=teaches, tokens=1, first_occurred_at=at)
            for i in range(count)
        ]

    hour = 3_600_000_000
    assert due(pool_of(rows(100, 0), {}, None), 0, SETTINGS) == "100 new successes"
    assert due(pool_of(rows(3, 0), {}, None), 23 * hour, SETTINGS) is None
    assert due(pool_of(rows(3, 0), {}, None), 24 * hour, SETTINGS) == "new successes are 24.0 hours old"
    assert due(pool_of(rows(300, 0, teaches=False), {}, None), 99 * hour, SETTINGS) is None


def test_windows_survive_the_table(desk: Desk) -> None:
    registered(desk, 20, success=0.5, failure_rates={"a": 0.5})
    window = windows.show(desk.store, "default-000001")
    assert [s for s, _ in window.history] == [State.CLAIMED, State.CURATED, State.TRAINED, State.EVALUATED, State.REGISTERED]
    assert msgspec.convert(msgspec.to_builtins(window, str_keys=True), type(window), strict=False) == window


@pytest.mark.parametrize("wrong", [{"test_share": 0.6, "validation_share": 0.4}, {"recovery_share": 1.5}, {"fresh_every": 0}, {"size": -1}])
def test_settings_that_contradict_themselves_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"share|at least"):
        type(SETTINGS)(**wrong)  # type: ignore[arg-type]
