"""The event that agents publish: one envelope, five bodies. The Avro schemas in `avro/` are the wire form of these classes.

Every class here leaves out its defaults when it is encoded, so that a field added later (with a default) changes neither
the stored bytes nor the hash of an event that was written before it (`event_set`). They hold no cycles, so the garbage collector
need not look at them (`gc=False`): ingest keeps many.
"""

from enum import StrEnum
from typing import Any

import msgspec

from stillhouse.schemas.keys import trajectory_key
from stillhouse.schemas.messages import Message


class PolicyRole(StrEnum):
    """Who acted. Only a teacher's or a person's steps may be supervised."""

    UNKNOWN = "unknown"
    TEACHER = "teacher"
    STUDENT = "student"
    HUMAN = "human"
    SCRIPT = "script"


class Outcome(StrEnum):
    """How a trajectory ended, by its source's own word (not `reward >= 1`)."""

    UNKNOWN = "unknown"
    SUCCESS = "success"
    FAILURE = "failure"
    ABORTED = "aborted"


class FeedbackSource(StrEnum):
    """Who judged, from most trusted to least: verifier, user, proxy, judge."""

    UNKNOWN = "unknown"
    VERIFIER = "verifier"
    USER = "user"
    PROXY = "proxy"
    JUDGE = "judge"


class Policy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The model (or person, or script) behind an event."""

    role: PolicyRole = PolicyRole.UNKNOWN
    model: str = ""
    version: str = ""


class Assignment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The arm a unit was assigned to at the gateway, whoever answered it."""

    route: str
    unit: str
    experiment: str
    arm: str
    epoch: int


class Task(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What the agent was asked to do. `id` and `family` are null when the source has none."""

    id: str | None = None
    family: str | None = None
    instruction: str | None = None


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Tokens of one step; null where the source did not say."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class TrajectoryStarted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag="TrajectoryStarted"):
    """A run begins. `tools` are OpenAI tool definitions; `environment` names the simulator and its version, when there is one."""

    task: Task = Task()
    system_prompt: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    attempt: int = 1
    parent_trajectory: str | None = None
    resume_step: int | None = None
    environment: str | None = None
    subject: str | None = None


class StepTaken(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag="StepTaken"):
    """One step. `state` are only the *new* messages since the last step; `observation` the tool and user messages that answered."""

    action: Message
    index: int | None = None
    state: tuple[Message, ...] = ()
    observation: tuple[Message, ...] = ()
    usage: Usage = Usage()
    cost_micro_usd: int | None = None
    latency_ms: float | None = None
    error: str | None = None
    logprobs: str | None = None  # JSON, top-k as the upstream returned it


class TrajectoryEnded(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag="TrajectoryEnded"):
    """A run is over. `steps` is the number of steps it took, so that a missing one is seen."""

    steps: int | None = None
    outcome: Outcome = Outcome.UNKNOWN
    reward: float | None = None
    verifier: str | None = None


class FeedbackGiven(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag="FeedbackGiven"):
    """A judgement of a trajectory (or of one step), before, during or long after it.

    `revises` names the event_id of an earlier feedback; with `retracted` that one is taken back and nothing put in its place.
    """

    source: FeedbackSource = FeedbackSource.UNKNOWN
    source_version: str = ""
    step: int | None = None
    outcome: Outcome = Outcome.UNKNOWN
    reward: float | None = None
    label: str | None = None
    revises: str | None = None
    retracted: bool = False


class ClientReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag="ClientReport"):
    """What a client could not send, counted by reason. Never part of a row."""

    dropped: dict[str, int] = {}


Body = TrajectoryStarted | StepTaken | TrajectoryEnded | FeedbackGiven | ClientReport


class AgentEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The envelope. `event_id` is the dedupe key; `occurred_at` is data (microseconds since the epoch), never the record's timestamp.

    `traceparent` is W3C Trace Context's header value.
    """

    event_id: str
    tenant: str
    trajectory_id: str
    occurred_at: int
    body: Body
    agent: str = ""
    policy: Policy = Policy()
    assignment: Assignment | None = None
    traceparent: str | None = None

    @property
    def key(self) -> str:
        """The record key, merge key and every join key."""
        return trajectory_key(self.tenant, self.trajectory_id)
