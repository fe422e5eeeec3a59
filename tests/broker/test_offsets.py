"""Committed offsets survive what a process may meet: kill -9, a torn write, a full disk, a rewrite of their log."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.broker import offsets as module
from stillhouse.broker.offsets import Committed, Offsets

PLACES = st.tuples(st.sampled_from(["t", "u"]), st.integers(0, 2))
COMMITTED = st.builds(Committed, st.integers(0, 99), st.just(0), st.text(max_size=5))
COMMITS = st.tuples(st.just("commit"), st.sampled_from(["g", "h"]), st.dictionaries(PLACES, COMMITTED))
DROPS = st.tuples(st.just("drop"), st.sampled_from(["g", "h"]), st.none() | st.lists(PLACES, max_size=2))
TOPICS = st.tuples(st.just("topic"), st.sampled_from(["t", "u"]), st.none())
CRASHES = st.tuples(st.just("crash"), st.binary(max_size=30), st.none())


@settings(max_examples=60, deadline=None)
@given(st.lists(COMMITS | DROPS | TOPICS | CRASHES, max_size=30), st.sampled_from([200, 10_000]))
def test_any_history_is_read_back(history: list[tuple[str, object, object]], rewrite_above: int) -> None:
    model: dict[str, dict[tuple[str, int], Committed]] = {}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_REWRITE_ABOVE", rewrite_above)
        path = Path(folder) / "offsets.log"
        offsets = Offsets(path)
        for step in [*history, ("crash", b"", None)]:
            match step:
                case ("commit", str(group), dict(places)):
                    offsets.commit(group, places)
                    model.setdefault(group, {}).update(places)
                case ("drop", str(group), None):
                    offsets.drop(group)
                    model.pop(group, None)
                case ("drop", str(group), list(gone)):
                    offsets.drop(group, gone)
                    model[group] = {p: c for p, c in model.get(group, {}).items() if p not in gone}
                case ("topic", str(topic), _):
                    offsets.drop_topic(topic)
                    model = {g: {p: c for p, c in places.items() if p[0] != topic} for g, places in model.items()}
                case ("crash", bytes(torn), _):
                    offsets.close(fsync=False)
                    with path.open("ab") as file:
                        file.write(torn)
                    offsets = Offsets(path)
            model = {group: places for group, places in model.items() if places}
            assert offsets.groups == model
        offsets.close(fsync=False)


def test_the_log_is_rewritten_and_stays_small(tmp_path: Path) -> None:
    offsets = Offsets(tmp_path / "offsets.log")
    for offset in range(10_000):
        offsets.commit("g", {("t", 0): Committed(offset, 0, "")})
    assert (tmp_path / "offsets.log").stat().st_size < 300_000
    offsets.close(fsync=False)
    assert Offsets(tmp_path / "offsets.log").groups == {"g": {("t", 0): Committed(9_999, 0, "")}}


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offsets = Offsets(tmp_path / "offsets.log")
    offsets.commit("g", {("t", 0): Committed(1, 0, "")})

    def full(descriptor: int, data: memoryview, position: int) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            offsets.commit("g", {("t", 0): Committed(2, 0, "")})
    assert offsets.groups == {"g": {("t", 0): Committed(1, 0, "")}}
    offsets.commit("g", {("t", 0): Committed(3, 0, "")})
    offsets.close(fsync=True)
    assert Offsets(tmp_path / "offsets.log").groups["g"]["t", 0].offset == 3
