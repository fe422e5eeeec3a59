"""A trajectory on its way to an example: its steps with what curation has decided about each."""

from collections.abc import Sequence

import msgspec

from stillhouse.schemas.events import Policy, PolicyRole
from stillhouse.schemas.labels import is_label
from stillhouse.schemas.messages import Message
from stillhouse.schemas.trajectory import Step, Trajectory
from stillhouse.trainer.examples import Side, TrainMessage


class DraftStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step. `recovery` marks a failed call that stays as context: its loss is masked and it does not count as a step."""

    action: Message
    policy: Policy
    state: tuple[Message, ...] = ()
    observation: tuple[Message, ...] = ()
    supervised: bool = False
    recovery: bool = False
    error: str | None = None
    output_tokens: int | None = None
    cost_micro_usd: int | None = None
    latency_ms: float | None = None

    @property
    def teaches(self) -> bool:
        """Whether the action's tokens carry loss."""
        return self.supervised and not self.recovery


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """One trajectory in curation.

    `raw_steps` and `raw_tools` are what efficiency saw before pruning; `again` marks a trajectory that an earlier window of the
    lineage trained on: it is replayed, and what was decided over whole windows then (efficiency, dedupe) is not decided again.
    """

    trajectory: Trajectory
    task_key: str
    leader: str
    side: Side
    steps: tuple[DraftStep, ...]
    raw_steps: int
    raw_tools: tuple[str, ...]
    again: bool = False
    weight: float = 1.0

    @property
    def key(self) -> str:
        """The trajectory's key."""
        return self.trajectory.key

    @property
    def tenant(self) -> str:
        """The trajectory's tenant."""
        return self.trajectory.tenant

    @property
    def family(self) -> str:
        """The task's family; empty where the source has none."""
        return self.trajectory.task.family or ""

    @property
    def count(self) -> int:
        """Steps that were needed: without the failed calls that stay as recovery."""
        return sum(not s.recovery for s in self.steps)

    @property
    def plan(self) -> tuple[str, ...]:
        """The sequence of tools used, without failed calls that stay as recovery."""
        return tuple(c.name for s in self.steps if not s.recovery for c in s.action.tool_calls)

    @property
    def tools_used(self) -> tuple[str, ...]:
        """The set of tools used, sorted."""
        return tuple(sorted(set(self.plan)))

    @property
    def taught(self) -> bool:
        """Whether a teacher or a person took every step: only such runs make medians."""
        return all(s.policy.role in (PolicyRole.TEACHER, PolicyRole.HUMAN) for s in self.steps)

    @property
    def label(self) -> bool:
        """Whether it is the teacher's word at a state that a student visited: one action, that nobody executed."""
        return is_label(self.trajectory)

    @property
    def source(self) -> str:
        """Who is learned from: role and model of the first supervised step."""
        policy = next((s.policy for s in self.steps if s.supervised), Policy())
        return f"{policy.role.value}:{policy.model}"

    def head(self) -> tuple[Message, ...]:
        """The system prompt, unless the first step's state brings its own."""
        prompt = self.trajectory.system_prompt
        brings = bool(self.steps) and any(m.role == "system" for m in self.steps[0].state)
        return (Message(role="system", content=prompt),) if prompt and not brings else ()

    def conversation(self) -> tuple[TrainMessage, ...]:
        """All messages with their loss mask. What follows the last supervised action teaches nothing and is left out."""
        last = max((i for i, s in enumerate(self.steps) if s.teaches), default=-1)
        out = [TrainMessage(m, False) for m in self.head()]
        for i, step in enumerate(self.steps[: last + 1]):
            out += [TrainMessage(m, False) for m in step.state]
            out.append(TrainMessage(step.action, step.teaches))
            out += [TrainMessage(m, False) for m in step.observation if i < last]
        return tuple(out)


def draft_of(trajectory: Trajectory, *, task_key: str, leader: str, side: Side, again: bool = False) -> Draft:
    """The draft of a whole trajectory; nothing is supervised yet."""
    steps = tuple(map(_step, trajectory.steps))
    tools = tuple(sorted({c.name for s in steps for c in s.action.tool_calls}))
    return Draft(
        trajectory=trajectory,
        task_key=task_key,
        leader=leader,
        side=side,
        steps=steps,
        raw_steps=len(steps),
        raw_tools=tools,
        again=again,
    )


def with_steps(draft: Draft, steps: Sequence[DraftStep]) -> Draft:
    """The same draft with other steps."""
    return msgspec.structs.replace(draft, steps=tuple(steps))


def _step(step: Step) -> DraftStep:
    return DraftStep(
        action=step.action,
        policy=step.policy,
        state=step.state,
        observation=step.observation,
        error=step.error,
        output_tokens=step.usage.output_tokens,
        cost_micro_usd=step.cost_micro_usd,
        latency_ms=step.latency_ms,
    )
