"""Attestation probes: sequences on which a student can be told from its parent and its base model.

A server that should hold the student scores them; what it answers is near one of the three recorded log-probabilities.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from stillhouse.schemas.student_folder import PROBES, Probe, distance, load_probes

__all__ = ["PROBES", "PROBE_COUNT", "Probe", "Scorer", "choose_probes", "distance", "load_probes", "save_probes"]
PROBE_COUNT = 16

Scorer = Callable[[Sequence[Sequence[int]]], list[list[float]]]
"""Of each sequence, the log-probability of each token but the first."""


def choose_probes(candidates: Sequence[Sequence[int]], student: Scorer, base: Scorer, parent: Scorer | None) -> tuple[Probe, ...]:
    """The candidates on which the student differs most from both others, most different first.

    Args:
        candidates: token ids of training rows; repeats are scored once.
        student: scores sequences.
        base: the same of the base model.
        parent: the same of the parent.
    """
    distinct = [c for c in dict.fromkeys(tuple(c) for c in candidates) if len(c) > 1]
    above = parent(distinct) if parent else [None] * len(distinct)
    scored = [
        Probe(ids=ids, student=tuple(own), base=tuple(under), parent=None if over is None else tuple(over))
        for ids, own, under, over in zip(distinct, student(distinct), base(distinct), above, strict=True)
    ]
    return tuple(sorted(scored, key=lambda p: p.separation, reverse=True)[:PROBE_COUNT])


def save_probes(folder: Path, probes: Sequence[Probe]) -> None:
    """Write `probes.json`."""
    (folder / PROBES).write_bytes(msgspec.json.encode(list(probes)))
