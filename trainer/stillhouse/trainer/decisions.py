"""What was decided elsewhere and binds a trainer: who is to be forgotten, and which students nothing may be built on."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from stillhouse.schemas.codec import decode
from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.facts import Erasure, StudentStage, StudentState
from stillhouse.schemas.route_state import TERMINAL
from stillhouse.schemas.topics import ERASURES, STUDENTS
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.sdk.kafka_read import read_whole

TIMEOUT_S = 30.0


class Erasures(msgspec.Struct, frozen=True, kw_only=True):
    """Who is to be forgotten, as of an offset of the topic `erasures`.

    Attributes:
        offset: of the last erasure that was read, in the topic's only partition; -1 when there is none. Where somebody gave the topic
            more partitions: one less than the sum of their ends, so that it still only grows.
        subjects: (tenant, subject) of each.
    """

    offset: int = -1
    subjects: frozenset[tuple[str, str]] = frozenset()

    def covers(self, tenant: str, subject: str | None) -> bool:
        """Whether rows of this subject may not be used any more."""
        return subject is not None and (tenant, subject) in self.subjects


NOBODY = Erasures()
ReadErasures = Callable[[], Erasures]


def read_erasures(settings: KafkaSettings) -> Erasures:
    """Read the topic `erasures` whole, all its partitions.

    Raises:
        UnreachableError: no broker answers.
        PermanentError: there is no such topic, or a record cannot be read: an erasure must not be passed over.
    """
    ends: dict[int, int] = {}
    subjects = set()
    for message in _records(settings, ERASURES):
        ends[message.partition()] = message.offset() + 1
        if message.value():
            erasure = decode(message.value(), Erasure)
            subjects.add((erasure.tenant, erasure.subject))
    return Erasures(offset=sum(ends.values()) - 1, subjects=frozenset(subjects))


Record = tuple[int, StudentState]
"""Offset and content of a record of the topic `students`."""


def read_students(settings: KafkaSettings) -> list[Record]:
    """The topic `students` whole, in its order.

    Raises:
        UnreachableError: no broker answers.
        PermanentError: there is no such topic, it has more than one partition (the order of decisions would be lost), or a record cannot
            be read: it may be a revocation.
    """
    return [(m.offset(), decode(m.value(), StudentState)) for m in _records(settings, STUDENTS, most=1) if m.value()]


def barred(records: Iterable[Record], *, below_teacher: bool = False) -> frozenset[str]:
    """The students that were rolled back, revoked or rejected: for regression, poison or erasure. None is ever a parent again.

    One such record is enough, also if another controller's decision came first: a student that somebody wanted out is no parent.

    Args:
        records: of the topic `students`.
        below_teacher: let off a student that a canary ended for no more than being worse than the teacher, or for its time.
    """
    return frozenset(s.student for _, s in records if s.stage in TERMINAL and not (below_teacher and _only_below_teacher(s)))


def read_barred(settings: KafkaSettings, *, below_teacher: bool = False) -> frozenset[str]:
    """`barred` of the topic as it is now. Raises as `read_students`."""
    return barred(read_students(settings), below_teacher=below_teacher)


def _only_below_teacher(state: StudentState) -> bool:
    """The controller's own words for it; whatever else a reason says keeps a student out."""
    ours = state.stage is StudentStage.ROLLED_BACK and state.decided_by.startswith("canary/")
    return ours and (state.reason.endswith("_worse_than_teacher") or state.reason in ("max_age", "max_units"))


def _records(settings: KafkaSettings, name: str, *, most: int | None = None) -> Iterator[Any]:
    """Every record of a topic up to its end now; a topic that is missing, or has more than `most` partitions, is refused."""

    def check(topic: str, partitions: Sequence[int]) -> None:
        if not partitions:
            raise PermanentError(f"no topic {topic}", where=settings.bootstrap_servers, fix="Run `stillhouse topics apply`.")
        if most is not None and len(partitions) > most:
            fix = "Make it anew with one partition; `stillhouse topics apply` does."
            raise PermanentError(f"{topic} has {len(partitions)} partitions, not {most}", where=settings.bootstrap_servers, fix=fix)

    return read_whole(settings, name, reader="stillhouse-trainer-reader", timeout=TIMEOUT_S, check=check)
