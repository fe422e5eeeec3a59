"""Who runs a task: claims in the table `teacher_runs`, made before anything is spent.

A claim is inserted if absent, so one of many runners has it. One without a result is lost when its lease has run out (a living
runner renews it) and is taken over once, as attempt 2; a run that had ended by then, as its row in `trajectories` says, is
not paid for again: its result is noted instead.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec

from stillhouse.schemas.facts import TeacherTask, TeacherTaskKind
from stillhouse.schemas.keys import trajectory_key
from stillhouse.schemas.tables import ledger_row
from stillhouse.schemas.teacher_runs import CLAIMED, DONE, FAILED, LOST, RUNNER, TABLE, Attempt, Claim, claim_row, runner_key
from stillhouse.schemas.trajectory import Status
from stillhouse.sdk.store import Store
from stillhouse.sdk.store_arrow import quoted

ATTEMPTS = 2
_TRIES = 8


class Claims:
    """The claims of one runner.

    Args:
        store: where they are.
        worker: this runner's name, of this process alone.
        lease_s: seconds after which a claim that was not renewed is lost.
        now: microseconds since the epoch.
    """

    def __init__(self, store: Store, worker: str, lease_s: float, now: Callable[[], int]) -> None:
        self._store, self._worker, self._now = store, worker, now
        self._lease = round(lease_s * 1e6)

    def register(self, families: Collection[str]) -> None:
        """Say that somebody runs tasks of these families: signals issues none but `relabel` for others.

        Raises:
            UnreachableError: the store does not answer.
        """
        now = self._now()
        for family in families:
            if not self._store.insert_if_absent(TABLE, [ledger_row(runner_key(family), family, RUNNER, "", {}, now, now)]):
                self._store.update(TABLE, runner_key(family), {"updated_at": now})

    def free(self, tasks: Sequence[TeacherTask]) -> list[TeacherTask]:
        """Those that nobody has claimed, in their order. Raises as `register`."""
        taken = self._store.by_key(TABLE, [task.task_id for task in tasks], ("key",))
        return [task for task in tasks if task.task_id not in taken]

    def claim(self, task: TeacherTask) -> Claim | None:
        """Take a task; None when somebody else has it. Raises as `register`."""
        now = self._now()
        claim = Claim(task=task, lease_until=now + self._lease, attempts=(self._attempt(task, 1, now),))
        return claim if self._store.insert_if_absent(TABLE, [claim_row(claim, CLAIMED, "", now, now)]) else None

    def take_over(self, families: Collection[str] | None, tenant: str | None, *, relabel: bool = False) -> Claim | None:
        """A lost claim as a new attempt; None where there is none. Raises as `register`.

        Args:
            families: of these; None is all.
            tenant: whose; None is all.
            relabel: of tasks that execute nothing, else of the others: who serves one kind cannot serve the other.
        """
        where = f"state = {quoted(CLAIMED)}"
        if families is not None:
            where += f" AND scope IN ({', '.join(quoted(family) for family in sorted(families))})"
        for row in self._store.rows(TABLE, where):
            claim, now = _claim_of(row), self._now()
            if claim.lease_until > now or tenant not in (None, claim.task.tenant):
                continue
            if (claim.task.kind is TeacherTaskKind.RELABEL) is not relabel:
                continue
            ended = self._ended(claim)
            if ended is not None:
                self._set(row, _with_last(claim, ended_at=now, **ended), DONE)
            elif len(claim.attempts) >= ATTEMPTS:
                self._set(row, claim, LOST)
            else:
                again = self._attempt(claim.task, len(claim.attempts) + 1, now)
                taken = msgspec.structs.replace(claim, attempts=(*claim.attempts, again), lease_until=now + self._lease)
                if self._set(row, taken, CLAIMED):
                    return taken
        return None

    def renew(self, claim: Claim) -> None:
        """Say that this runner lives; without effect on a claim that it has lost. Raises as `register`."""
        row = self._store.by_key(TABLE, [claim.task.task_id]).get(claim.task.task_id)
        if row is not None and row["state"] == CLAIMED and _claim_of(row).content == claim.content:
            self._set(row, msgspec.structs.replace(_claim_of(row), lease_until=self._now() + self._lease), CLAIMED)

    def finish(self, claim: Claim, *, outcome: str, cost_micro_usd: int, error: str = "") -> bool:
        """Note how an attempt ended. Its cost counts even when the claim was lost meanwhile.

        Returns:
            Whether it is the task's result.

        Raises:
            UnreachableError: the store does not answer.
        """
        mine, facts = claim.attempts[-1], {"outcome": outcome, "cost_micro_usd": cost_micro_usd, "error": error}
        for _ in range(_TRIES):
            row = self._store.by_key(TABLE, [claim.task.task_id])[claim.task.task_id]
            stored = _claim_of(row)
            ours = row["state"] == CLAIMED and stored.content == claim.content
            done = tuple(
                msgspec.structs.replace(a, ended_at=self._now(), **facts) if (a.number, a.worker) == (mine.number, mine.worker) else a
                for a in stored.attempts
            )
            state = (FAILED if error else DONE) if ours else row["state"]
            if self._set(row, msgspec.structs.replace(stored, attempts=done), state):
                return ours
        return False

    def _ended(self, claim: Claim) -> dict[str, Any] | None:
        """What the store says of the last attempt's run, if it had ended."""
        key = trajectory_key(claim.task.tenant, claim.attempts[-1].trajectory)
        row = self._store.by_key("trajectories", [key], ("key", "status", "outcome", "cost_micro_usd")).get(key)
        if row is None or row["status"] != Status.ENDED.value:
            return None
        return {"outcome": row["outcome"], "cost_micro_usd": row["cost_micro_usd"] or 0}

    def _attempt(self, task: TeacherTask, number: int, now: int) -> Attempt:
        return Attempt(number=number, worker=self._worker, started_at=now, trajectory=f"{task.task_id}-{number}")

    def _set(self, row: dict[str, Any], claim: Claim, state: str) -> bool:
        new = claim_row(claim, state, row["content"], row["created_at"], self._now())
        return self._store.compare_and_set(TABLE, [new]) == 1


def _claim_of(row: dict[str, Any]) -> Claim:
    return msgspec.convert(row["data"], Claim, strict=False)


def _with_last(claim: Claim, **facts: Any) -> Claim:
    *before, last = claim.attempts
    return msgspec.structs.replace(claim, attempts=(*before, msgspec.structs.replace(last, **facts)))
