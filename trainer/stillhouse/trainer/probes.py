"""Attestation probes: sequences on which a student can be told from its parent and its base model.

A server that should hold the student scores them; what it answers is near one of the three recorded log-probabilities.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from stillhouse.schemas.errors import PermanentError

PROBES = "probes.json"
PROBE_COUNT = 16

Scorer = Callable[[Sequence[int]], list[float]]


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence, and the log-probability of each of its tokens but the first under each model (parent: None without one)."""

    ids: tuple[int, ...]
    student: tuple[float, ...]
    base: tuple[float, ...]
    parent: tuple[float, ...] | None = None

    @property
    def separation(self) -> float:
        """How far the student is from the nearer of the other two: mean |Δ log-probability|, nats a token."""
        return min(distance(self.student, other) for other in (self.base, self.parent) if other is not None)


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Mean |Δ log-probability| of two scorings of one sequence, nats a token.

    Raises:
        PermanentError: they are not of the same sequence.
    """
    if len(one) != len(other) or not one:
        raise PermanentError(f"log-probabilities of {len(one)} and {len(other)} tokens cannot be compared", where=PROBES)
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


def choose_probes(candidates: Sequence[Sequence[int]], student: Scorer, base: Scorer, parent: Scorer | None) -> tuple[Probe, ...]:
    """The candidates on which the student differs most from both others, most different first.

    Args:
        candidates: token ids of training rows; repeats are scored once.
        student: scores a sequence: log-probability of each token but the first.
        base: the same of the base model.
        parent: the same of the parent.
    """
    distinct = [c for c in dict.fromkeys(tuple(c) for c in candidates) if len(c) > 1]
    scored = [
        Probe(ids=ids, student=tuple(student(ids)), base=tuple(base(ids)), parent=tuple(parent(ids)) if parent else None)
        for ids in distinct
    ]
    return tuple(sorted(scored, key=lambda p: p.separation, reverse=True)[:PROBE_COUNT])


def save_probes(folder: Path, probes: Sequence[Probe]) -> None:
    """Write `probes.json`."""
    (folder / PROBES).write_bytes(msgspec.json.encode(list(probes)))


def load_probes(folder: Path) -> tuple[Probe, ...]:
    """The probes of a student's folder.

    Raises:
        PermanentError: there are none, or they cannot be read.
    """
    path = folder / PROBES
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[Probe, ...])
    except (OSError, msgspec.MsgspecError) as error:
        raise PermanentError(f"no readable probes: {error}", where=str(path)) from error
