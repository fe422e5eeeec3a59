"""A trajectory as the fold of its events gives it. `fold` makes it, ingest stores its row, the trainer reads it."""

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from stillhouse.schemas.events import Assignment, Outcome, Policy, PolicyRole, Task, Usage
from stillhouse.schemas.messages import Message

FORMAT_ERROR = "format:"
"""What the error of a step begins with whose policy wrote no action of its grammar."""


class Status(StrEnum):
    """Completeness of the record, apart from how the run turned out."""

    ENDED = "ended"
    INCOMPLETE = "incomplete"
    UNENDED = "unended"
    FAILED = "failed"


class Step(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One folded step: what was new, what the policy did, what answered. `index` is the source's or the place by time."""

    index: int
    action: Message
    policy: Policy
    event_id: str
    occurred_at: int
    state: tuple[Message, ...] = ()
    observation: tuple[Message, ...] = ()
    usage: Usage = Usage()
    cost_micro_usd: int | None = None
    latency_ms: float | None = None
    error: str | None = None


def is_malformed(policy: Policy, error: str | None) -> bool:
    """Whether a step is a student's that wrote no action of its grammar: the gateway's word for it (`format: …`)."""
    return policy.role is PolicyRole.STUDENT and error is not None and error.startswith(FORMAT_ERROR)


def is_failure(policy: Policy, error: str | None) -> bool:
    """Whether a step is a student's that was asked and gave no reply: too slow, its server away, the context full."""
    return policy.role is PolicyRole.STUDENT and error is not None and not error.startswith(FORMAT_ERROR)


class Judgement(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One source's own latest, unretracted word."""

    source: str
    outcome: Outcome
    reward: float | None
    version: str
    step: int | None
    event_id: str


class Trajectory(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The whole of one run. A pure function of the set of its events.

    `revision` is the number of distinct events folded, `content` their hash (hex). `status_reason` names the gap or the failure.
    `superseded` counts steps that another event for the same index replaced; `malformed` those of them in which a student wrote no
    action of its grammar, whoever answered in its place. `failures` has the student of each request that it was asked and gave no
    reply to, whoever answered then; a request that never reached it (not loaded yet, not covered) is none.
    """

    key: str
    tenant: str
    trajectory_id: str
    revision: int
    content: str
    status: Status
    status_reason: str = ""
    headless: bool = False
    agent: str = ""
    task: Task = Task()
    system_prompt: str | None = None
    tools: tuple[dict[str, object], ...] = ()
    attempt: int = 1
    parent_trajectory: str | None = None
    resume_step: int | None = None
    environment: str | None = None
    subject: str | None = None
    policies: tuple[Policy, ...] = ()
    assignment: Assignment | None = None
    steps: tuple[Step, ...] = ()
    superseded: int = 0
    malformed: int = 0
    failures: tuple[Policy, ...] = ()
    outcome: Outcome = Outcome.UNKNOWN
    outcome_source: str = ""
    reward: float | None = None
    judgements: tuple[Judgement, ...] = ()
    first_occurred_at: int = 0
    last_occurred_at: int = 0

    def messages(self) -> tuple[Message, ...]:
        """The conversation as a client saw it: system prompt, then state, action and observation of each step.

        A message that a step's state repeats from the observation before it is not said twice: the fold has moved those.
        """
        head = (Message(role="system", content=self.system_prompt),) if self.system_prompt else ()
        return head + _said(self.steps)

    def before(self, place: int) -> tuple[Message, ...]:
        """The conversation that the step at a place answered, as a client sent it: a system prompt that its first state brings counts."""
        brings = any(message.role == "system" for message in self.steps[0].state)
        head = (Message(role="system", content=self.system_prompt),) if self.system_prompt and not brings else ()
        return (*head, *_said(self.steps[:place]), *self.steps[place].state)


def _said(steps: Sequence[Step]) -> tuple[Message, ...]:
    return tuple(m for s in steps for m in (*s.state, s.action, *s.observation))
