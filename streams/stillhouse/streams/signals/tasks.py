"""What of the students' failures is asked of the teacher: candidates in order, and budgets. Pure."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from stillhouse.schemas.facts import TeacherTask, TeacherTaskKind
from stillhouse.schemas.ledger import LeaderLedger, Side, TaskText
from stillhouse.schemas.teacher_runs import Issue, issue_key, task_id
from stillhouse.streams.signals.runs import FamilyRate, Run
from stillhouse.streams.signals.settings import SignalsSettings

DAY = 86_400_000_000


def day_of(now: int) -> str:
    """The UTC date of a time in microseconds since the epoch."""
    return datetime.fromtimestamp(now / 1e6, UTC).date().isoformat()


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A run that a student failed, and how the teacher would be asked about it."""

    run: Run
    kind: TeacherTaskKind
    teacher: str
    priority: float


def candidates(
    runs: Iterable[Run],
    families: Sequence[FamilyRate],
    now: int,
    settings: SignalsSettings,
    *,
    runners: Collection[str],
    teacher_of: Callable[[str], str],
    can_relabel: Callable[[str], bool],
    forgotten: Callable[[str, str], bool],
) -> list[Candidate]:
    """The failures that may be asked about: weakest and most frequent families first, newest first within one.

    Args:
        runs: stored runs.
        families: how students do, in that order.
        now: microseconds since the epoch.
        settings: `[signals]`.
        runners: families that somebody runs again.
        teacher_of: the fingerprint of a route's teacher.
        can_relabel: whether a route's teacher has an address.
        forgotten: says of a tenant and subject whether it is to be erased.
    """
    order = {(one.route, one.family): (rank, one.priority) for rank, one in enumerate(families)}
    since = now - round(settings.failures_days * DAY)
    found = []
    for run in runs:
        if not run.failed or run.appended_at < since or (run.subject is not None and forgotten(run.tenant, run.subject)):
            continue
        again = run.family in runners
        if not again and not (settings.relabel and can_relabel(run.route)):
            continue
        kind = TeacherTaskKind.FAILED if again else TeacherTaskKind.RELABEL
        found.append(Candidate(run=run, kind=kind, teacher=teacher_of(run.route), priority=order[run.route, run.family][1]))
    return sorted(found, key=lambda c: (order[c.run.route, c.run.family][0], -c.run.appended_at, c.run.key))


class Budget:
    """What may still be issued on one day.

    Args:
        settings: `[signals]`.
        issues: those that count for that day.
    """

    def __init__(self, settings: SignalsSettings, issues: Iterable[Issue] = ()) -> None:
        self._settings = settings
        self._used = Counter((issue.route, issue.task.family or "") for issue in issues)

    def left(self, route: str, family: str) -> int:
        """Tasks of a route and family that may still be issued."""
        here = self._settings.budget_of(route, family) - self._used[route, family]
        return max(0, min(here, self._settings.tasks_per_day - self._used.total()))

    def take(self, route: str, family: str) -> bool:
        """Use one, if there is one left."""
        if not self.left(route, family):
            return False
        self._used[route, family] += 1
        return True


def task_of(candidate: Candidate, now: int) -> TeacherTask:
    """The task that asks the teacher about a failure."""
    run = candidate.run
    return TeacherTask(
        task_id=task_id(candidate.kind, run.key, None, candidate.teacher),
        kind=candidate.kind,
        key=run.key,
        tenant=run.tenant,
        family=run.family or None,
        source_task_id=run.task_id,
        teacher=candidate.teacher,
        priority=candidate.priority,
        issued_at=now,
    )


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """What a look at the candidates gave: issues by the key of their row, and why others are none."""

    issues: dict[str, Issue]
    passed: Counter[str]


def choose(
    ordered: Iterable[Candidate],
    texts: Mapping[str, TaskText],
    ledger: LeaderLedger,
    issued: Collection[str],
    budget: Budget,
    now: int,
) -> Chosen:
    """Issue what the budget allows. Only a task that the ledger has placed on the training side is ever issued.

    Args:
        ordered: candidates, the most wanted first.
        texts: their tasks by trajectory; one that is not there is passed over.
        ledger: where tasks stand.
        issued: keys of the rows of earlier issues.
        budget: of the day; what is issued is taken from it.
        now: microseconds since the epoch.
    """
    issues: dict[str, Issue] = {}
    passed: Counter[str] = Counter()
    for candidate in ordered:
        run, text = candidate.run, texts.get(candidate.run.key)
        place = ledger.place(text.tenant, text.family, text.task_key) if text is not None else None
        if text is None or place is None:
            passed["unplaced"] += 1
            continue
        if place.side is not Side.TRAIN:
            passed["held_out"] += 1
            continue
        task = task_of(candidate, now)
        key = issue_key(task, text.task_key)
        if key in issued or key in issues:
            passed["issued_before"] += 1
        elif not budget.take(run.route, run.family):
            passed["over_budget"] += 1
        else:
            issues[key] = Issue(task=task, route=run.route, day=day_of(now), task_key=text.task_key)
    return Chosen(issues=issues, passed=passed)


def within(settings: SignalsSettings, counted: Iterable[Issue], pending: Mapping[str, Issue]) -> tuple[list[str], list[str]]:
    """Which rows that wait to be published are within their day's budget, and which are not: several writers may have added at once.

    Args:
        settings: `[signals]`.
        counted: issues that are published.
        pending: issues that are not, by the key of their row.
    """
    by_day: dict[str, list[Issue]] = {}
    for issue in counted:
        by_day.setdefault(issue.day, []).append(issue)
    budgets = {day: Budget(settings, by_day.get(day, ())) for day in {issue.day for issue in pending.values()}}
    good: list[str] = []
    over: list[str] = []
    for key, issue in sorted(pending.items(), key=lambda p: (p[1].task.issued_at, -p[1].task.priority, p[0])):
        (good if budgets[issue.day].take(issue.route, issue.task.family or "") else over).append(key)
    return good, over
