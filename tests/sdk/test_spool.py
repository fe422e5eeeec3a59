"""The spool's folders: numbers, bounds, locks, orphans."""

import logging
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.events import AgentEvent, TrajectoryEnded
from stillhouse.sdk import Refusal, spool_folder
from stillhouse.sdk.rejected import RejectedFolder
from stillhouse.sdk.spool import Slot, Spool
from stillhouse.sdk.spool_folder import Parcel, parcel, waiting


def made(number: int, size: int = 10) -> Parcel:
    return parcel("topic", b"key", b"%d" % number + b"x" * size, [("name", b"value")])


def held(spool: Spool) -> list[Parcel]:
    return [found for _, found in spool.read({}, 1000)]


def test_what_is_written_is_read_back_in_order_until_it_is_acknowledged(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s", 10_000)
    parcels = [made(n) for n in range(5)]
    slots, why = spool.write(parcels)
    assert why is None and held(spool) == parcels and spool.rows == 5
    for slot in slots[:2]:
        spool.acknowledged(slot)
    assert held(spool) == parcels[2:] and spool.rows == 3, "even before it is deleted"
    spool.sweep()
    assert held(spool) == parcels[2:] and waiting(tmp_path / "s") == 3
    assert spool.fetch(slots[3]) == parcels[3] and spool.fetch(slots[0]) is None
    assert spool.close() == 3


def test_only_what_fits_is_taken(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s", made(0).stored * 3)
    slots, why = spool.write([made(n) for n in range(5)])
    assert len(slots) == 3 and why is Refusal.SPOOL_FULL
    spool.acknowledged(slots[0])
    spool.sweep()
    assert [len(slots) for slots, _ in (spool.write([made(7)]), spool.write([made(8)]))] == [1, 0]
    spool.close()


@settings(max_examples=30, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 6), st.lists(st.integers(0, 20), max_size=5)), max_size=8))
def test_counts_are_what_is_on_disk(changes: list[tuple[int, list[int]]], tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("spool")
    folder = spool_folder.create(root)
    for insert, delete in changes:
        folder.change([made(n) for n in range(insert)], delete)
    counted = folder.rows, folder.bytes
    folder.close(remove=False)
    (again,) = spool_folder.orphans(root)
    again.open()
    assert (again.rows, again.bytes) == counted == (waiting(root), counted[1])
    again.close(remove=True)
    assert not list(root.iterdir())


def test_an_orphan_is_adopted_once_and_removed_when_it_is_empty(tmp_path: Path) -> None:
    dead = Spool(tmp_path, 10_000)
    dead.write([made(1), made(2)])
    assert Spool(tmp_path, 10_000).adopt() == 0, "its process lives"
    dead.close()
    heir, late = Spool(tmp_path, 10_000), Spool(tmp_path, 10_000)
    assert (heir.adopt(), late.adopt()) == (2, 0)
    heir.write([made(3)])
    found = dict(heir.read({}, 10))
    assert list(found.values()) == [made(3), made(1), made(2)]
    for slot in found:
        heir.acknowledged(slot)
    heir.sweep()
    assert heir.rows == 0 and heir.close() == late.close() == 0
    assert not [path for path in tmp_path.iterdir() if waiting(tmp_path)]


def test_a_spool_that_is_no_database_is_left_where_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = tmp_path / "process-1-dead"
    broken.mkdir()
    (broken / "parcels.db").write_bytes(b"no database" * 1000)
    with caplog.at_level(logging.ERROR):
        spool = Spool(tmp_path, 10_000)
        assert spool.adopt() == 0
    assert "process-1-dead" in caplog.text and (broken / "parcels.db").exists()
    spool.close()
    with pytest.raises(sqlite3.Error):
        waiting(tmp_path)


def test_a_folder_that_cannot_be_written_to_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PermanentError, match="spool=") as caught:
        Spool(tmp_path / "file" / "spool", 10_000)
    assert str(tmp_path) in str(caught.value)


def test_slots_of_two_folders_never_meet(tmp_path: Path) -> None:
    one, two = spool_folder.create(tmp_path), spool_folder.create(tmp_path)
    assert Slot(one, 1) != Slot(two, 1) and len({Slot(one, 1), Slot(two, 1)}) == 2
    for folder in (one, two):
        folder.close(remove=True)


def test_the_rejected_folder_keeps_the_newest_within_its_bound(tmp_path: Path) -> None:
    def event(name: str, label: str = "x" * 400) -> AgentEvent:
        return AgentEvent(event_id=name, tenant="t", trajectory_id="r", occurred_at=1, body=TrajectoryEnded(verifier=label))

    folder = RejectedFolder(tmp_path / "rejected", 2000)
    for number in range(6):
        folder.add(event(f"e{number}"), Refusal.TOO_LARGE)
    folder.add(event("huge", "x" * 3000), Refusal.TOO_LARGE)
    folder.add(event("../../etc/passwd"), Refusal.BROKER_REFUSED)
    files = list((tmp_path / "rejected").iterdir())
    assert sum(file.stat().st_size for file in files) <= 2000
    assert {file.stem for file in files} == {"e4", "e5", b"../../etc/passwd".hex()}
