"""The leader ledger: which tasks are the same task, and which side each stands on for ever.

A task joins the nearest leader of its scope (tenant and family) that has the same entities and is near enough, else it becomes a
leader. Leaders never merge and never move: groups that merged, or an approximate search, would move tasks between training and
test. Embeddings are integer counts of hashed character n-grams, and nearness is decided in integers: the same on every machine.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from fractions import Fraction
from hashlib import blake2b
from typing import Any

import msgspec

from stillhouse.schemas.errors import MissingExtraError
from stillhouse.schemas.literals import entities, fold
from stillhouse.schemas.trajectory import Trajectory

EMBEDDER = "char-3-5-grams-256-signed"
_SIZE = 256

Scope = tuple[str, str]
Vector = tuple[tuple[int, int], ...]


class Side(StrEnum):
    """Where a task stands for ever. A bridge is near tasks of two sides: neither trained nor tested."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"
    BRIDGE = "bridge"


class TaskText(msgspec.Struct, frozen=True, order=True):
    """A task as the ledger sees it: its scope, its key and what it asks."""

    tenant: str
    family: str
    task_key: str
    text: str


class Leader(msgspec.Struct, frozen=True, kw_only=True):
    """A task that stands for those near it. `vector` are its non-zero n-gram counts as (bucket, count) pairs."""

    task_key: str
    entities: tuple[str, ...]
    vector: Vector
    side: Side


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a task stands: its leader's task key and its side."""

    task_key: str
    leader: str
    side: Side


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """What one planning added to a scope: the unit in which the ledger is stored. `number` counts a scope's batches from 0."""

    tenant: str
    family: str
    number: int
    places: tuple[Place, ...]
    leaders: tuple[Leader, ...]
    embedder: str = EMBEDDER

    @property
    def key(self) -> str:
        """The key of its row: two planners that add to one scope at once make the same key, and one of them wins."""
        digest = blake2b("\x00".join((self.tenant, self.family)).encode(), digest_size=12).hexdigest()
        return f"{digest}-{self.number:08d}"


class LeaderLedger:
    """All tasks seen so far. `assign` makes a larger ledger and leaves this one as it is.

    Args:
        batches: what was stored, in any order.
        seed: key of the hash that decides a leader's side.
        test_share: part of the leaders on the test side.
        validation_share: part of the leaders on the validation side.
        similarity: cosine from which two tasks with the same entities are one.
    """

    def __init__(
        self,
        batches: Iterable[Batch] = (),
        *,
        seed: int = 1,
        test_share: float = 0.1,
        validation_share: float = 0.1,
        similarity: float = 0.9,
    ) -> None:
        self.batches = tuple(sorted(batches, key=lambda b: (b.tenant, b.family, b.number)))
        self._rule = (seed, test_share, validation_share, similarity)
        self._places = {(b.tenant, b.family, p.task_key): p for b in self.batches for p in b.places}
        self._near: dict[tuple[str, str, tuple[str, ...]], list[Leader]] = {}
        self._counts: dict[Scope, int] = {}
        for batch in self.batches:
            self._counts[batch.tenant, batch.family] = batch.number + 1
            for leader in batch.leaders:
                self._near.setdefault((batch.tenant, batch.family, leader.entities), []).append(leader)

    def place(self, tenant: str, family: str, task_key: str) -> Place | None:
        """Where a task stands; None when it was never assigned."""
        return self._places.get((tenant, family, task_key))

    def sides(self, tenant: str, family: str) -> frozenset[Side]:
        """The sides that a scope's tasks stand on."""
        return frozenset(p.side for b in self.batches if (b.tenant, b.family) == (tenant, family) for p in b.places)

    def assign(self, tasks: Iterable[TaskText]) -> "LeaderLedger":
        """A ledger that also knows these tasks: one window's, taken in the order of their keys whatever order they come in.

        Of several texts under one task key the first in order counts.
        """
        new: dict[Scope, dict[str, TaskText]] = {}
        for task in sorted(set(tasks)):
            if self.place(task.tenant, task.family, task.task_key) is None:
                new.setdefault((task.tenant, task.family), {}).setdefault(task.task_key, task)
        batches = [self._batch(scope, list(found.values())) for scope, found in sorted(new.items())]
        seed, test, validation, similarity = self._rule
        return LeaderLedger((*self.batches, *batches), seed=seed, test_share=test, validation_share=validation, similarity=similarity)

    def added(self, base: "LeaderLedger") -> tuple[Batch, ...]:
        """The batches that `base` does not have."""
        known = {b.key for b in base.batches}
        return tuple(b for b in self.batches if b.key not in known)

    def _batch(self, scope: Scope, tasks: Sequence[TaskText]) -> Batch:
        places: list[Place] = []
        leaders: list[Leader] = []
        for task, vector in zip(tasks, embed([t.text for t in tasks]), strict=True):
            found = tuple(sorted(entities(task.text)))
            same = [*self._near.get((*scope, found), ()), *(x for x in leaders if x.entities == found)]
            near = self._nearest(vector, same)
            if not near:
                leaders.append(Leader(task_key=task.task_key, entities=found, vector=_pairs(vector), side=self._side(scope, task.task_key)))
                near = [leaders[-1]]
            side = near[0].side if len({x.side for x in near}) == 1 else Side.BRIDGE
            places.append(Place(task_key=task.task_key, leader=near[0].task_key, side=side))
        return Batch(tenant=scope[0], family=scope[1], number=self._counts.get(scope, 0), places=tuple(places), leaders=tuple(leaders))

    def _nearest(self, vector: Mapping[int, int], leaders: Sequence[Leader]) -> list[Leader]:
        """The leaders that are near enough, nearest first; the earlier of two that are equally near."""
        limit = Fraction(str(self._rule[3])) ** 2
        scored = []
        for at, leader in enumerate(leaders):
            near = _cosine_squared(vector, leader.vector)
            if near >= limit:
                scored.append((-near, at, leader))
        return [leader for _, _, leader in sorted(scored, key=lambda s: s[:2])]

    def _side(self, scope: Scope, task_key: str) -> Side:
        seed, test, validation, _ = self._rule
        at = chance(seed, "side", *scope, task_key)
        return Side.TEST if at < test else Side.VALIDATION if at < test + validation else Side.TRAIN


def task_key(trajectory: Trajectory) -> str:
    """The task's id, else a hash of tenant, family, folded instruction and first tool result."""
    if trajectory.task.id is not None:
        return trajectory.task.id
    result = next((m.text for s in trajectory.steps for m in s.observation if m.role == "tool"), "")
    parts = (trajectory.tenant, trajectory.task.family or "", fold(instruction(trajectory)), result)
    return blake2b("\x00".join(parts).encode("utf-8", "replace"), digest_size=16).hexdigest()


def instruction(trajectory: Trajectory) -> str:
    """What was asked: the task's instruction, else the first user message."""
    if trajectory.task.instruction is not None:
        return trajectory.task.instruction
    return next((m.text for m in trajectory.messages() if m.role == "user"), "")


def tasks_of(trajectories: Iterable[Trajectory]) -> list[TaskText]:
    """The tasks of trajectories, for the ledger."""
    return [TaskText(tenant=t.tenant, family=t.task.family or "", task_key=task_key(t), text=fold(instruction(t))) for t in trajectories]


def chance(seed: int, *parts: object) -> float:
    """A number in [0, 1) that the seed and the names decide: the same on every machine and in any order."""
    digest = blake2b("\x00".join(map(str, parts)).encode(), key=str(seed).encode()[:64], digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def embed(texts: Sequence[str]) -> list[dict[int, int]]:
    """Counts of hashed character 3- to 5-grams, signed, in 256 buckets: {bucket: count} for each text.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    if not texts:
        return []
    try:
        from sklearn.feature_extraction.text import HashingVectorizer
    except ImportError as error:
        raise MissingExtraError("grouping tasks", "trainer") from error
    vectorizer: Any = HashingVectorizer(analyzer="char", ngram_range=(3, 5), n_features=_SIZE, norm=None, lowercase=False)
    rows = vectorizer.transform([fold(t) for t in texts]).tocsr()
    out = []
    for i in range(len(texts)):
        at = slice(rows.indptr[i], rows.indptr[i + 1])
        out.append({int(b): int(v) for b, v in zip(rows.indices[at], rows.data[at], strict=True) if v})
    return out


def _cosine_squared(one: Mapping[int, int], other: Vector) -> Fraction:
    """The squared cosine of two count vectors, exactly; 0 for an obtuse angle, 1 for two empty texts."""
    dot = sum(count * one.get(bucket, 0) for bucket, count in other)
    norms = sum(v * v for v in one.values()) * sum(count * count for _, count in other)
    if not norms:
        return Fraction(int(not one and not other))
    return Fraction(dot * dot, norms) if dot > 0 else Fraction(0)


def _pairs(vector: Mapping[int, int]) -> Vector:
    return tuple(sorted(vector.items()))
