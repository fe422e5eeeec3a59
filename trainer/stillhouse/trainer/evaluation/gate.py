"""The family gate: a student may not be worse than its parent on any family of tasks."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from stillhouse.schemas.errors import GateError
from stillhouse.trainer.evaluation.benchmark import Episode
from stillhouse.trainer.evaluation.stats import holm, sign_test

ALPHA = 0.10
MIN_TASKS = 12
REST = "rest"


class FamilyTest(msgspec.Struct, frozen=True, kw_only=True):
    """One family (or `rest`) on the tasks that both ran. Discordant pairs: `worse` lost, `better` won by the student."""

    family: str
    members: tuple[str, ...]
    tasks: int
    parent: int
    student: int
    worse: int
    better: int
    p_value: float | None = None
    adjusted: float | None = None
    verdict: Literal["worse", "not worse", "not judged"]


class FamilyGate(msgspec.Struct, frozen=True, kw_only=True):
    """The gate's answer. `not_judged` names families with too few tasks, even pooled."""

    passed: bool
    alpha: float
    tests: tuple[FamilyTest, ...]
    not_judged: tuple[str, ...]

    def require(self) -> None:
        """Do nothing when it passed.

        Raises:
            GateError: the student is worse on a family.
        """
        worse = [
            f"{t.family} {t.parent}→{t.student} of {t.tasks} (adjusted p {t.adjusted:.3f})" for t in self.tests if t.verdict == "worse"
        ]
        if worse:
            raise GateError(
                f"worse than the parent on {'; '.join(worse)}", fix="The parent stays, and the window's rows go back to the pool."
            )


def family_gate(parent: Iterable[Episode], student: Iterable[Episode], *, alpha: float = ALPHA, minimum: int = MIN_TASKS) -> FamilyGate:
    """Compare parent and student on the tasks that both ran.

    A one-sided exact sign test a family on the discordant tasks, Holm over families. A family with fewer than `minimum`
    tasks joins `rest`; when `rest` has fewer as well, its families are named as not judged.

    Args:
        parent: the parent's episodes.
        student: the student's; a task that ran several times counts by its majority (a tie is a failure).
        alpha: bound on the chance that a student that is nowhere worse is refused.
        minimum: tasks that a family needs to be judged alone.
    """
    pairs = _pairs(_majorities(parent), _majorities(student))
    groups: dict[str, list[str]] = {f: [f] for f, found in pairs.items() if len(found) >= minimum}
    small = sorted(set(pairs) - set(groups))
    if small:
        groups[REST] = small
    tests = [_test(name, members, [p for m in members for p in pairs[m]], minimum) for name, members in sorted(groups.items())]
    adjusted = holm({t.family: t.p_value for t in tests if t.p_value is not None})
    judged = tuple(_judge(t, adjusted, alpha) for t in tests)
    return FamilyGate(
        passed=all(t.verdict != "worse" for t in judged), alpha=alpha, tests=judged,
        not_judged=tuple(m for t in judged if t.verdict == "not judged" for m in t.members),
    )  # fmt: skip


_Outcomes = Mapping[tuple[str, str], bool]


def _majorities(episodes: Iterable[Episode]) -> _Outcomes:
    runs: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for episode in episodes:
        runs[episode.family, episode.task_id].append(episode.success)
    return {key: 2 * sum(found) > len(found) for key, found in runs.items()}


def _pairs(parent: _Outcomes, student: _Outcomes) -> dict[str, list[tuple[bool, bool]]]:
    found: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for key in sorted(set(parent) & set(student)):
        found[key[0]].append((parent[key], student[key]))
    return found


def _test(name: str, members: list[str], pairs: list[tuple[bool, bool]], minimum: int) -> FamilyTest:
    worse, better = sum(p and not s for p, s in pairs), sum(s and not p for p, s in pairs)
    enough = len(pairs) >= minimum
    return FamilyTest(
        family=name, members=tuple(members), tasks=len(pairs), parent=sum(p for p, _ in pairs), student=sum(s for _, s in pairs),
        worse=worse, better=better, p_value=sign_test(worse, better) if enough else None, verdict="not worse" if enough else "not judged",
    )  # fmt: skip


def _judge(test: FamilyTest, adjusted: Mapping[str, float], alpha: float) -> FamilyTest:
    if test.p_value is None:
        return test
    p = adjusted[test.family]
    return msgspec.structs.replace(test, adjusted=p, verdict="worse" if p <= alpha else "not worse")
