"""What signals knows of stored runs: a few columns, without text. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from stillhouse.schemas.events import Outcome, PolicyRole

COLUMNS = (
    "key", "tenant", "family", "task_id", "subject", "content", "outcome", "policies", "assignment", "first_occurred_at", "appended_at",
)  # fmt: skip


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `trajectories`. Times are microseconds since the epoch.

    Attributes:
        key: the trajectory's.
        tenant: whose it is.
        family: of its task; empty where the source has none.
        task_id: of its task.
        subject: whose data it is.
        content: hash of its events.
        outcome: how it ended.
        route: at the gateway; empty when it came another way.
        student: whether a student acted in it.
        teachers: the models of teachers, or people, that acted in it.
        first_occurred_at: when it began.
        appended_at: when the log had the last of it.
    """

    key: str
    tenant: str
    family: str
    task_id: str | None
    subject: str | None
    content: str
    outcome: str
    route: str
    student: bool
    teachers: tuple[str, ...]
    first_occurred_at: int
    appended_at: int

    @property
    def teaches(self) -> bool:
        """Whether a window may learn from it, as the trainer's pool counts."""
        return self.outcome == Outcome.SUCCESS.value and bool(self.teachers)

    @property
    def failed(self) -> bool:
        """Whether a student failed in it."""
        return self.student and self.outcome == Outcome.FAILURE.value

    @property
    def judged(self) -> bool:
        """Whether a student ran it and somebody said how it ended."""
        return self.student and self.outcome in (Outcome.SUCCESS.value, Outcome.FAILURE.value)


def run_of(row: Mapping[str, Any]) -> Run:
    """A row with `COLUMNS` as a run."""
    policies = row["policies"] or ()
    roles = {str(policy.get("role")) for policy in policies}
    taught = {str(policy.get("model")) for policy in policies if policy.get("role") in (PolicyRole.TEACHER.value, PolicyRole.HUMAN.value)}
    return Run(
        key=row["key"],
        tenant=row["tenant"],
        family=row["family"] or "",
        task_id=row["task_id"],
        subject=row["subject"],
        content=row["content"],
        outcome=row["outcome"],
        route=str((row["assignment"] or {}).get("route") or ""),
        student=PolicyRole.STUDENT.value in roles,
        teachers=tuple(sorted(taught)),
        first_occurred_at=row["first_occurred_at"] or 0,
        appended_at=row["appended_at"] or 0,
    )


class FamilyRate(msgspec.Struct, frozen=True, kw_only=True):
    """How students do in a family of a route. `share` is the part of all student runs that it has."""

    route: str
    family: str
    runs: int
    failures: int
    share: float

    @property
    def rate(self) -> float:
        """The failure rate, drawn to one half while there are few runs (Laplace's rule of succession)."""
        return (self.failures + 1) / (self.runs + 2)

    @property
    def priority(self) -> float:
        """Weak and frequent comes first."""
        return self.rate * self.share


def rates(runs: Iterable[Run]) -> list[FamilyRate]:
    """The families that students ran, the weakest and most frequent first."""
    counts: dict[tuple[str, str], list[int]] = {}
    for run in runs:
        if run.judged:
            found = counts.setdefault((run.route, run.family), [0, 0])
            found[0] += 1
            found[1] += run.failed
    total = sum(number for number, _ in counts.values())
    families = [
        FamilyRate(route=route, family=family, runs=number, failures=failures, share=number / total)
        for (route, family), (number, failures) in counts.items()
    ]
    return sorted(families, key=lambda family: (-family.priority, family.route, family.family))
