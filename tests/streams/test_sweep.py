"""Orphaned chunks: found once a day, some at a time, each looked at once; and never one that a flush may still name."""

from pathlib import Path

import pytest

from stillhouse.schemas.errors import PermanentError, UnreachableError
from stillhouse.sdk.config import Config
from stillhouse.sdk.store import Store
from stillhouse.streams import maintenance
from stillhouse.streams.ingest.sink import FRESH
from stillhouse.streams.instruments import Instruments
from stillhouse.streams.maintenance import DAY, Maintainer
from stillhouse.streams.settings import IngestSettings

NOW = 100 * DAY


@pytest.fixture
def now() -> list[int]:
    return [NOW]


@pytest.fixture
def keeper(store: Store, now: list[int]) -> Maintainer:
    return Maintainer(store, IngestSettings(), Instruments("stillhouse_"), "a", lambda: [], lambda: now[0])


def put(store: Store, **stored_at: int) -> None:
    rows = [{"key": key, "trajectory": f"acme/{key}", "events": b"\x90", "count": 0, "stored_at": at} for key, at in stored_at.items()]
    assert store.insert_if_absent("transcripts", rows) == len(rows)


def chunks(store: Store) -> list[str]:
    return [row["key"] for row in store.rows("transcripts", columns=["key"])]


def test_orphans_are_looked_for_once_a_day(store: Store, keeper: Maintainer, now: list[int]) -> None:
    put(store, a=NOW - 2 * DAY)
    assert keeper.once() and chunks(store) == []
    put(store, b=NOW - DAY, c=NOW)
    now[0] += DAY - 1
    assert keeper.once() and chunks(store) == ["b", "c"], "not yet: it would read the table again every few minutes"
    now[0] += 1
    assert keeper.once() and chunks(store) == ["c"]
    now[0] += DAY
    assert keeper.once() and chunks(store) == []


def test_all_are_found_in_small_slices_also_many_of_one_moment(store: Store, keeper: Maintainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "SWEPT_AT_ONCE", 2)
    put(store, **{f"m{n}": 7 for n in range(5)}, a=3, b=7, c=8, d=9, young=NOW)
    assert keeper.sweep_orphans() == 9
    assert chunks(store) == ["young"]


def test_what_was_looked_at_is_not_read_again_and_what_was_interrupted_goes_on(
    store: Store, keeper: Maintainer, now: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "SWEPT_AT_ONCE", 1)
    put(store, a=1, b=2, c=3)
    good, asked = store.delete, []

    def interrupted(table: str, where: str) -> None:
        asked.append(where)
        if len(asked) == 2:
            raise UnreachableError("away")
        good(table, where)

    monkeypatch.setattr(store, "delete", interrupted)
    with pytest.raises(UnreachableError):
        keeper.once()
    assert chunks(store) == ["b", "c"]
    now[0] += 300_000_000
    assert keeper.once() and chunks(store) == []
    assert len(asked) == 4 and not any("'a'" in where for where in asked[1:])
    put(store, old=NOW - 2 * DAY)  # no flush stores a chunk with a time long past: this shows what is not read any more
    now[0] += DAY
    assert keeper.once() and chunks(store) == ["old"]


@pytest.mark.parametrize("seconds", ["1", "7199.9"])
def test_an_age_that_a_slow_flush_may_reach_is_refused(seconds: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_INGEST__ORPHAN_AGE", seconds)
    with pytest.raises(PermanentError, match="7200"):
        Config.load(state=tmp_path).section("ingest", IngestSettings)
    monkeypatch.setenv("STILLHOUSE_INGEST__ORPHAN_AGE", "7200")
    assert Config.load(state=tmp_path).section("ingest", IngestSettings).orphan_age * 1e6 == 2 * FRESH
