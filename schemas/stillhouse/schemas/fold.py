"""A trajectory as a pure function of the *set* of its events: no order of arrival, duplicate, batch or clock shows in it.

Order is (index, occurred_at, event_id). Of two events for one place the later counts and the other is counted as superseded.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from stillhouse.schemas.errors import PermanentError, UsageError
from stillhouse.schemas.event_set import EventSet, content_hash, event_set
from stillhouse.schemas.events import (
    AgentEvent,
    Assignment,
    FeedbackGiven,
    Policy,
    PolicyRole,
    StepTaken,
    TrajectoryEnded,
    TrajectoryStarted,
)
from stillhouse.schemas.fold_feedback import decide, judgements
from stillhouse.schemas.messages import Message
from stillhouse.schemas.trajectory import Status, Step, Trajectory, is_failure, is_malformed

ERASED = "erased"
"""The `status_reason` of what is left of a trajectory whose subject asked to be forgotten."""

Placed = tuple[int, AgentEvent, StepTaken]


def fold(events: Iterable[AgentEvent], *, erased: Callable[[str], bool] | None = None) -> Trajectory:
    """The trajectory that a set of events is.

    Args:
        events: all of one trajectory, in any order, with any duplicates; client reports among them are ignored.
        erased: says of a subject whether it is to be forgotten; then only the key and `ERASED` are left.

    Raises:
        UsageError: there is no event to fold.
        PermanentError: the events are of several trajectories.
    """
    return fold_set(event_set(events), erased=erased)


def fold_set(members: EventSet, *, erased: Callable[[str], bool] | None = None) -> Trajectory:
    """`fold` where the identities of the events are known already.

    Raises:
        UsageError: there is no event to fold.
        PermanentError: the events are of several trajectories.
    """
    if not members:
        raise UsageError("there is no event to fold")
    events = _winners(members)
    first = events[0]
    if any(one.trajectory_id != first.trajectory_id or one.tenant != first.tenant for one in events):
        raise PermanentError("events of several trajectories cannot be folded into one", where=first.key)
    steps, starts, ends, feedback = _by_kind(events)
    start = starts[-1][1] if starts else None
    if start is not None and start.subject is not None and erased is not None and erased(start.subject):
        return tombstone(first.key, first.tenant, first.trajectory_id, start.subject)
    end = ends[-1][1] if ends else None
    placed, indexed = _place(steps)
    failed = _failed(steps, placed)
    status, reason = _status(placed, end, indexed)
    words = judgements(feedback)
    outcome, source, reward = decide(words, end)
    begun = start or TrajectoryStarted()
    return Trajectory(
        key=first.key,
        tenant=first.tenant,
        trajectory_id=first.trajectory_id,
        revision=len(members),
        content=content_hash(members),
        status=status,
        status_reason=reason,
        headless=start is None,
        agent=_agent(events, starts),
        task=begun.task,
        system_prompt=begun.system_prompt,
        tools=begun.tools,
        attempt=begun.attempt,
        parent_trajectory=begun.parent_trajectory,
        resume_step=begun.resume_step,
        environment=begun.environment,
        subject=begun.subject,
        policies=_policies([*(event for _, event, _ in placed), *(event for event, _ in failed)] or events),
        assignment=_assignment(events),
        steps=_steps(placed),
        # Whatever did not count: other places' losers, and other versions of one event.
        superseded=len(members) - len(events) + len(steps) - len(placed) + max(0, len(starts) - 1) + max(0, len(ends) - 1),
        malformed=sum(is_malformed(event.policy, step.error) for event, step in failed),
        failures=tuple(e.policy for e, s in [*failed, *((e, s) for _, e, s in placed)] if is_failure(e.policy, s.error)),
        outcome=outcome,
        outcome_source=source,
        reward=reward,
        judgements=words,
        first_occurred_at=first.occurred_at,
        last_occurred_at=events[-1].occurred_at,
    )


def tombstone(key: str, tenant: str, trajectory_id: str, subject: str | None) -> Trajectory:
    """What stays of an erased trajectory: without it, a late event would make a row of the erased subject again."""
    return Trajectory(
        key=key,
        tenant=tenant,
        trajectory_id=trajectory_id,
        revision=0,
        content=ERASED,
        status=Status.FAILED,
        status_reason=ERASED,
        subject=subject,
    )


def _winners(members: EventSet) -> list[AgentEvent]:
    """One event for each event_id (of several, the one with the least digest), by (occurred_at, event_id)."""
    events = {one.event.event_id: one.event for one in members.values()}
    if len(events) < len(members):
        events = {one.event.event_id: one.event for one in sorted(members.values(), reverse=True)}
    return sorted(events.values(), key=lambda event: (event.occurred_at, event.event_id))


def _by_kind(
    events: Sequence[AgentEvent],
) -> tuple[
    list[tuple[AgentEvent, StepTaken]],
    list[tuple[AgentEvent, TrajectoryStarted]],
    list[tuple[AgentEvent, TrajectoryEnded]],
    list[tuple[AgentEvent, FeedbackGiven]],
]:
    """The events of each kind, in their order: one pass, since every event of every fold goes through here."""
    found: dict[type, list[tuple[AgentEvent, Any]]] = {StepTaken: [], TrajectoryStarted: [], TrajectoryEnded: [], FeedbackGiven: []}
    for event in events:
        of_kind = found.get(type(event.body))
        if of_kind is not None:
            of_kind.append((event, event.body))
    return found[StepTaken], found[TrajectoryStarted], found[TrajectoryEnded], found[FeedbackGiven]


def _place(steps: list[tuple[AgentEvent, StepTaken]]) -> tuple[list[Placed], bool]:
    """The steps that count, in order, each with its index; and whether the indices are the source's own."""
    by_index = {step.index: (event, step) for event, step in steps if step.index is not None}
    indexed = [(index, *by_index[index]) for index in sorted(by_index)]
    timed = [(event, step) for event, step in steps if step.index is None]
    if not timed:
        return indexed, True
    merged: list[tuple[AgentEvent, StepTaken]] = []
    for _, event, step in indexed:
        while timed and timed[0][0].occurred_at < event.occurred_at:
            merged.append(timed.pop(0))
        merged.append((event, step))
    return [(place, event, step) for place, (event, step) in enumerate(merged + timed)], False


def _failed(steps: list[tuple[AgentEvent, StepTaken]], placed: list[Placed]) -> list[tuple[AgentEvent, StepTaken]]:
    """A student's failed steps that another answer took the place of: they happened, though no row has them."""
    if len(steps) == len(placed):
        return []
    stand = {event.event_id for _, event, _ in placed}
    return [
        (event, step)
        for event, step in steps
        if event.event_id not in stand and event.policy.role is PolicyRole.STUDENT and step.error is not None
    ]


def _status(placed: list[Placed], end: TrajectoryEnded | None, indexed: bool) -> tuple[Status, str]:
    expected = end.steps if end is not None else None
    gap = _gap(placed, expected) if indexed else _shortage(len(placed), expected)
    if end is None:
        return Status.UNENDED, gap
    if gap:
        return Status.INCOMPLETE, gap
    if expected is not None and len(placed) > expected:
        return Status.ENDED, f"{len(placed)} steps where the end says {expected}"
    return Status.ENDED, ""


def _gap(placed: list[Placed], expected: int | None) -> str:
    """The missing indices, as `steps 2, 5-7 of 8 missing`."""
    total = max(expected or 0, placed[-1][0] + 1 if placed else 0)
    if total == len(placed):
        return ""
    missing, following = [], 0
    for index in [*(index for index, _, _ in placed), total]:
        if index > following:
            missing.append(str(following) if index == following + 1 else f"{following}-{index - 1}")
        following = index + 1
    return f"step{'s' if len(missing) > 1 or '-' in missing[0] else ''} {', '.join(missing)} of {total} missing" if missing else ""


def _shortage(found: int, expected: int | None) -> str:
    return f"{expected - found} of {expected} steps missing" if expected is not None and found < expected else ""


def _steps(placed: list[Placed]) -> tuple[Step, ...]:
    """The folded steps; tool messages that lead a step's state answered the step before it, and are moved there."""
    states = [step.state for _, _, step in placed]
    observations = [step.observation for _, _, step in placed]
    for k in range(1, len(placed)):
        if states[k] and placed[k][0] == placed[k - 1][0] + 1:
            observations[k - 1], states[k] = _move(observations[k - 1], states[k])
    return tuple(
        Step(
            index=index,
            action=step.action,
            policy=event.policy,
            event_id=event.event_id,
            occurred_at=event.occurred_at,
            state=states[k],
            observation=observations[k],
            usage=step.usage,
            cost_micro_usd=step.cost_micro_usd,
            latency_ms=step.latency_ms,
            error=step.error,
        )
        for k, (index, event, step) in enumerate(placed)
    )


def _move(observation: tuple[Message, ...], state: tuple[Message, ...]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """The observation with what leads the next state; nothing is said twice when both ways in reported it."""
    answered = {message.tool_call_id for message in observation if message.role == "tool" and message.tool_call_id}
    leading, moved = 0, []
    for message in state:
        repeated = message in observation or (message.role == "tool" and message.tool_call_id in answered)
        if message.role != "tool" and not repeated:
            break
        leading += 1
        if not repeated:
            moved.append(message)
    return (*observation, *moved), state[leading:]


def _agent(events: Sequence[AgentEvent], starts: list[tuple[AgentEvent, TrajectoryStarted]]) -> str:
    named = [event.agent for event, _ in reversed(starts)] + [event.agent for event in events]
    return next((name for name in named if name), "")


def _policies(events: Sequence[AgentEvent]) -> tuple[Policy, ...]:
    """Each policy once: those of the steps in their order, then those that only failed."""
    found: list[Policy] = []
    for event in events:
        if (not found or event.policy is not found[-1]) and event.policy not in found:
            found.append(event.policy)
    return tuple(found)


def _assignment(events: Sequence[AgentEvent]) -> Assignment | None:
    """The first: a unit counts in the arm that it was first assigned to."""
    return next((event.assignment for event in events if event.assignment is not None), None)
