"""Probes tell a student from its parent and its base."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from stillhouse.schemas.errors import PermanentError
from stillhouse.trainer.probes import PROBE_COUNT, choose_probes, distance, load_probes, save_probes


class Scorer:
    """Log-probabilities of a made-up model: -1 a token, moved by an amount that depends on the sequence's first token."""

    def __init__(self, by: dict[int, float]) -> None:
        self._by, self.scored = by, 0

    def __call__(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        self.scored += len(sequences)
        return [[-1.0 - self._by.get(ids[0], 0.0)] * (len(ids) - 1) for ids in sequences]


def test_chosen_are_those_far_from_both_parent_and_base() -> None:
    student = Scorer({})
    base, parent = Scorer({1: 3.0, 2: 0.1, 3: 2.0}), Scorer({1: 0.1, 2: 3.0, 3: 1.0})
    probes = choose_probes([[1, 9, 9], [2, 9], [3, 9, 9, 9]], student, base, parent)
    assert [p.ids[0] for p in probes] == [3, 1, 2]
    assert probes[0].separation == pytest.approx(1.0)


def test_the_first_child_is_told_from_the_base_alone() -> None:
    (probe,) = choose_probes([[1, 9]], Scorer({}), Scorer({1: 0.5}), None)
    assert probe.parent is None
    assert probe.separation == pytest.approx(0.5)


def test_repeats_are_scored_once_and_single_tokens_not_at_all() -> None:
    student = Scorer({})
    assert len(choose_probes([[1, 2], [1, 2], [7]], student, Scorer({}), None)) == student.scored == 1


def test_there_are_sixteen() -> None:
    assert len(choose_probes([[i, 1] for i in range(40)], Scorer({}), Scorer({}), None)) == PROBE_COUNT == 16


def test_they_survive_their_file(tmp_path: Path) -> None:
    probes = choose_probes([[1, 2, 3]], Scorer({}), Scorer({1: 0.25}), Scorer({1: 0.5}))
    save_probes(tmp_path, probes)
    assert load_probes(tmp_path) == probes
    with pytest.raises(PermanentError, match="no readable probes"):
        load_probes(tmp_path / "absent")


def test_scorings_of_different_lengths_are_not_compared() -> None:
    assert distance([0.0, -1.0], [-1.0, -1.0]) == 0.5
    with pytest.raises(PermanentError, match="2 and 1 tokens"):
        distance([0.0, 0.0], [0.0])
