"""What the table `teacher_runs` holds, and the ids by which nothing is asked, or paid for, twice.

Three kinds of rows, told apart by their key. `issue/…`: signals asked for a run (`issuing`, then `issued`, when the topic has it).
The task's id: somebody runs it (`claimed`, then `done`, `failed`, or `lost`). `runner/…`: somebody runs tasks of a family.
"""

from hashlib import blake2b
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import msgspec

from stillhouse.schemas.facts import TeacherTask, TeacherTaskKind

TABLE = "teacher_runs"
ISSUING, ISSUED = "issuing", "issued"
CLAIMED, DONE, FAILED, LOST = "claimed", "done", "failed", "lost"
RUNNER = "runner"

_NAMESPACE = uuid5(NAMESPACE_URL, "stillhouse/teacher-task")


def teacher_fingerprint(model: str, version: str = "") -> str:
    """Who the teacher is, wherever it runs: another one is asked again."""
    return blake2b("\x00".join((model, version)).encode(), digest_size=8).hexdigest()


def task_id(kind: TeacherTaskKind, key: str, step: int | None, teacher: str) -> str:
    """The id of a task: uuid5 of its kind, the trajectory's key, the step (None: the whole run) and the teacher's fingerprint."""
    return str(uuid5(_NAMESPACE, "\x00".join((kind.value, key, "" if step is None else str(step), teacher))))


def issue_key(task: TeacherTask, task_key: str) -> str:
    """The key of the row that says a task was asked for.

    The same *task* is run again once for each teacher, however many runs of it failed; states are visited by one run alone.
    """
    if task.kind is TeacherTaskKind.RELABEL:
        return f"issue/{task.task_id}"
    parts = (task.kind.value, task.tenant, task.family or "", task_key, task.teacher)
    return f"issue/{blake2b(chr(0).join(parts).encode(), digest_size=16).hexdigest()}"


def runner_key(family: str) -> str:
    """The key of the row that says a family has a runner."""
    return f"runner/{family}"


class Issue(msgspec.Struct, frozen=True, kw_only=True):
    """`data` of an issue: the task as the topic has it, and what it counts for. `day` is the UTC date whose budget it takes from."""

    task: TeacherTask
    route: str
    day: str
    task_key: str = ""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One time that a task was run. `trajectory` is the id that its events have; its cost counts even when it was lost."""

    number: int
    worker: str
    started_at: int
    trajectory: str
    cost_micro_usd: int = 0
    outcome: str = ""
    error: str = ""
    ended_at: int | None = None


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """`data` of a claimed task. `lease_until` is in microseconds since the epoch; the last attempt is the one that counts."""

    task: TeacherTask
    lease_until: int
    attempts: tuple[Attempt, ...]

    @property
    def content(self) -> str:
        """What a writer decided on: whose attempt it is."""
        last = self.attempts[-1]
        return f"{last.number}/{last.worker}"

    @property
    def cost_micro_usd(self) -> int:
        """Of all attempts."""
        return sum(attempt.cost_micro_usd for attempt in self.attempts)


def claim_row(claim: Claim, state: str, base: str, created: int, updated: int) -> dict[str, Any]:
    """The row of a claim. `base` is the content that its writer decided on."""
    return {
        "key": claim.task.task_id, "scope": claim.task.family or "", "state": state, "base_state": "", "data": msgspec.to_builtins(claim),
        "content": f"{state}/{claim.content}", "base_content": base, "created_at": created, "updated_at": updated,
    }  # fmt: skip
