"""Labels: the teacher's next action at a state that a student visited. Nothing of it was executed, and no outcome is claimed. Pure.

DAgger (Ross, Gordon and Bagnell, 2011) supervises the learner at the states that the learner itself reaches. A label is a trajectory of
its own: its parent is the student's run, `resume_step` the step that is labelled, its steps before that are the student's as they were,
and its last step is the teacher's action, without an observation.
"""

import uuid
from collections.abc import Iterator

import msgspec

from stillhouse.schemas.events import AgentEvent, Body, Policy, PolicyRole, StepTaken, TrajectoryEnded, TrajectoryStarted, Usage
from stillhouse.schemas.messages import Message
from stillhouse.schemas.trajectory import Step, Trajectory

RELABELLER = "stillhouse-relabel"
"""The agent of a label's events."""

_SPACE = uuid.uuid5(uuid.NAMESPACE_URL, "stillhouse/label")


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """What a teacher would do next, and what it took to ask."""

    action: Message
    policy: Policy
    usage: Usage = Usage()
    cost_micro_usd: int = 0
    latency_ms: float = 0.0


def label_id(task: str, step: int) -> str:
    """The trajectory of a label: of the task and the step alone, so that one that was lost on the way is asked for under the same name."""
    return f"{task}-s{step}"


def is_label(trajectory: Trajectory) -> bool:
    """Whether a trajectory is a label, whole."""
    steps = trajectory.steps
    return (
        trajectory.agent == RELABELLER
        and trajectory.parent_trajectory is not None
        and trajectory.resume_step is not None
        and len(steps) == trajectory.resume_step + 1
        and steps[-1].policy.role is PolicyRole.TEACHER
    )


def states(trajectory: Trajectory, most: int) -> list[int]:
    """The steps of a run at whose states the teacher can be asked: a student's, the first ones, for the later follow from them.

    None where the record has a gap: the state is not known then.
    """
    if trajectory.headless or any(step.index != place for place, step in enumerate(trajectory.steps)):
        return []
    return [place for place, step in enumerate(trajectory.steps) if step.policy.role is PolicyRole.STUDENT][:most]


def label_events(trajectory: Trajectory, step: int, task: str, label: Label, now: int) -> Iterator[AgentEvent]:
    """The events of a label, under ids that follow from the task and the step. `now` is in microseconds since the epoch."""
    name, before = label_id(task, step), trajectory.steps[:step]
    started = TrajectoryStarted(
        task=trajectory.task,
        system_prompt=trajectory.system_prompt,
        tools=tuple(trajectory.tools),
        parent_trajectory=trajectory.trajectory_id,
        resume_step=step,
        subject=trajectory.subject,
    )
    asked = StepTaken(
        action=label.action,
        index=step,
        state=trajectory.steps[step].state,
        usage=label.usage,
        cost_micro_usd=label.cost_micro_usd,
        latency_ms=label.latency_ms,
    )
    bodies: list[tuple[Body, Policy]] = [(started, label.policy), *((_as_it_was(one), one.policy) for one in before)]
    bodies += [(asked, label.policy), (TrajectoryEnded(steps=step + 1), label.policy)]
    for place, (body, policy) in enumerate(bodies):
        yield AgentEvent(
            event_id=str(uuid.uuid5(_SPACE, f"{trajectory.tenant}\0{name}\0{place}")),
            tenant=trajectory.tenant,
            trajectory_id=name,
            occurred_at=now + place,
            agent=RELABELLER,
            policy=policy,
            body=body,
        )


def _as_it_was(step: Step) -> StepTaken:
    """A step of the run as context. Its tokens, cost and time are the run's, and are counted there."""
    return StepTaken(action=step.action, index=step.index, state=step.state, observation=step.observation, error=step.error)
