"""Rows of `trajectories`, and the facts that a row says. Pure."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jsonschema_rs
import msgspec

from stillhouse.schemas.event_set import EventSet, content_hash
from stillhouse.schemas.events import Assignment, Outcome, Policy, PolicyRole, Task, TrajectoryStarted
from stillhouse.schemas.facts import Scores, TrajectoryFacts
from stillhouse.schemas.fold import tombstone
from stillhouse.schemas.keys import split_key
from stillhouse.schemas.tables import SCHEMA_VERSION
from stillhouse.schemas.trajectory import Status, Trajectory
from stillhouse.streams.score import score

Row = dict[str, Any]

_encode = msgspec.json.Encoder().encode

TEACHER_ARMS = frozenset({"teacher", "holdback", "control"})


class Read(NamedTuple):
    """Where a trajectory's new events were read: bookkeeping, outside every hash. Times are microseconds since the epoch."""

    partition: int
    first_offset: int
    last_offset: int
    appended_at: int


def row_of(
    trajectory: Trajectory, chunks: Sequence[str], previous: Row | None, read: Read, *, slow_ms: float, stored_at: int, reason: str = ""
) -> Row:
    """The row of a folded trajectory.

    Args:
        trajectory: the fold of all of its events.
        chunks: keys of all its chunks.
        previous: the stored row that this one replaces.
        read: where the new events were read.
        slow_ms: requests over it count as slow.
        stored_at: now.
        reason: why it failed; empty when it did not.
    """
    scores = Scores(steps=len(trajectory.steps)) if reason else score(trajectory)
    task, before = trajectory.task, previous or {}
    same_place = before.get("partition") == read.partition
    return {
        "key": trajectory.key,
        "tenant": trajectory.tenant,
        "trajectory_id": trajectory.trajectory_id,
        "agent": trajectory.agent,
        "task_id": task.id,
        "family": task.family,
        "instruction": task.instruction,
        "subject": trajectory.subject,
        "environment": trajectory.environment,
        "parent_trajectory": trajectory.parent_trajectory,
        "resume_step": trajectory.resume_step,
        "attempt": trajectory.attempt,
        "policies": [_policy(p, trajectory.failures.count(p)) for p in trajectory.policies],
        "assignment": None if trajectory.assignment is None else msgspec.structs.asdict(trajectory.assignment),
        "status": Status.FAILED.value if reason else trajectory.status.value,
        "status_reason": reason or trajectory.status_reason,
        "outcome": trajectory.outcome.value,
        "outcome_source": trajectory.outcome_source,
        "headless": trajectory.headless,
        "valid_tools": valid_tools(trajectory.tools),
        "reward": trajectory.reward,
        "superseded": trajectory.superseded,
        **msgspec.structs.asdict(scores),
        **_costs(trajectory, slow_ms),
        "first_occurred_at": trajectory.first_occurred_at,
        "last_occurred_at": trajectory.last_occurred_at,
        "content": trajectory.content,
        "base_content": before.get("content"),
        "chunks": list(chunks),
        "revision": trajectory.revision,
        "previous_revision": before.get("revision", 0),
        "previous_outcome": before.get("outcome", Outcome.UNKNOWN.value),
        "previous_reward": before.get("reward"),
        "partition": read.partition,
        "first_offset": min(read.first_offset, before["first_offset"]) if same_place else read.first_offset,
        "last_offset": max(read.last_offset, before["last_offset"]) if same_place else read.last_offset,
        "appended_at": max(read.appended_at, before.get("appended_at") or 0),
        "stored_at": stored_at,
        "schema_version": SCHEMA_VERSION,
    }


def unfolded(key: str, members: EventSet, previous: Row | None, *, erased: Callable[[str], bool]) -> Trajectory:
    """A trajectory that could not be folded. It still says whose it is, and what it was about: or nobody could erase or find it.

    Args:
        key: its key.
        members: its events, as far as they can be read.
        previous: the stored row, for what the events do not say.
        erased: says of a subject whether it is to be forgotten; then only a tombstone is left.
    """
    tenant, trajectory_id = split_key(key)
    before = previous or {}
    events = sorted((one.event for one in members.values()), key=lambda event: (event.occurred_at, event.event_id))
    starts = [event.body for event in events if isinstance(event.body, TrajectoryStarted)]
    known = Task(id=before.get("task_id"), family=before.get("family"), instruction=before.get("instruction"))
    start = starts[-1] if starts else TrajectoryStarted(task=known)
    subject = start.subject or before.get("subject")
    if subject is not None and erased(subject):
        return tombstone(key, tenant, trajectory_id, subject)
    return Trajectory(
        key=key,
        tenant=tenant,
        trajectory_id=trajectory_id,
        revision=len(members),
        content=content_hash(members),
        status=Status.FAILED,
        agent=next((event.agent for event in events if event.agent), before.get("agent") or ""),
        task=start.task,
        subject=subject,
    )


def _policy(policy: Policy, failures: int) -> Row:
    """A policy with the requests that it gave no reply to, where there are any."""
    said = {"role": policy.role.value, "model": policy.model, "version": policy.version}
    return said | {"failures": failures} if failures else said


def _costs(trajectory: Trajectory, slow_ms: float) -> Row:
    steps, arm = trajectory.steps, trajectory.assignment.arm if trajectory.assignment else None
    by_teacher = sum(step.policy.role is PolicyRole.TEACHER for step in steps)
    return {
        "cost_micro_usd": sum(step.cost_micro_usd or 0 for step in steps),
        "latency_ms": sum(step.latency_ms or 0.0 for step in steps),
        "requests": len(steps),
        "slow_requests": sum((step.latency_ms or 0.0) > slow_ms for step in steps),
        # Assigned to another arm than the teacher's, and answered by the teacher after all.
        "fallbacks": by_teacher if arm is not None and arm not in TEACHER_ARMS else 0,
    }


def valid_tools(tools: Sequence[dict[str, object]]) -> bool:
    """Whether each tool's parameters are a JSON Schema. A row of others is stored and flagged: the run did happen."""
    return not tools or _valid_tools(_encode(tools))


@lru_cache(maxsize=1024)  # an agent's tools are the same in all of its runs
def _valid_tools(encoded: bytes) -> bool:
    for tool in msgspec.json.decode(encoded, type=list[dict[str, Any]]):
        function = tool.get("function", tool)
        parameters = function.get("parameters") if isinstance(function, dict) else None
        try:
            if parameters is not None and not jsonschema_rs.meta.is_valid(parameters):
                return False
        except (ValueError, TypeError):  # no schema at all: a number, an unknown $schema
            return False
    return True


def facts_of(row: Row) -> TrajectoryFacts:
    """What a row says, without text. A function of the row alone: facts sent again say the same."""
    return TrajectoryFacts(
        key=row["key"],
        tenant=row["tenant"],
        trajectory_id=row["trajectory_id"],
        revision=row["revision"],
        content=row["content"],
        status=row["status"],
        outcome=Outcome(row["outcome"]),
        task_id=row["task_id"],
        family=row["family"],
        subject=row["subject"],
        agent=row["agent"] or "",
        policies=tuple(msgspec.convert(policy, Policy) for policy in row["policies"] or ()),
        assignment=None if row["assignment"] is None else msgspec.convert(row["assignment"], Assignment),
        parent_trajectory=row["parent_trajectory"],
        resume_step=row["resume_step"],
        outcome_source=row["outcome_source"] or "",
        reward=row["reward"],
        previous_revision=row["previous_revision"],
        previous_outcome=Outcome(row["previous_outcome"]),
        previous_reward=row["previous_reward"],
        scores=Scores(**{name: row[name] or 0 for name in Scores.__struct_fields__}),
        cost_micro_usd=row["cost_micro_usd"] or 0,
        latency_ms=row["latency_ms"] or 0.0,
        requests=row["requests"] or 0,
        slow_requests=row["slow_requests"] or 0,
        fallbacks=row["fallbacks"] or 0,
        occurred_at=row["last_occurred_at"] or 0,
        appended_at=row["appended_at"] or 0,
        stored_at=row["stored_at"] or 0,
        first_occurred_at=row["first_occurred_at"] or 0,
        student_failures=sum(policy.get("failures", 0) for policy in row["policies"] or ()),
    )
