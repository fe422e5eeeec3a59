"""Values of the other topics: facts without text, watermarks, teacher tasks, students, verdicts, erasures."""

from enum import StrEnum

import msgspec

from stillhouse.schemas.events import Assignment, Outcome, Policy


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """Intrinsic scores of a row: nothing here depends on another trajectory."""

    steps: int = 0
    error_steps: int = 0
    repeated_calls: int = 0
    format_errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class TrajectoryFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One revision of a row, without text, with the values it replaced. Times are microseconds since the epoch.

    `first_occurred_at` and `occurred_at` are those of the trajectory's first and last event. `fallbacks` are the requests that the teacher
    answered in a student's arm, for whatever reason; `student_failures` those in which a student was asked and gave no reply.
    """

    key: str
    tenant: str
    trajectory_id: str
    revision: int
    content: str
    status: str
    outcome: Outcome
    task_id: str | None = None
    family: str | None = None
    subject: str | None = None
    agent: str = ""
    policies: tuple[Policy, ...] = ()
    assignment: Assignment | None = None
    parent_trajectory: str | None = None
    resume_step: int | None = None
    outcome_source: str = ""
    reward: float | None = None
    previous_revision: int = 0
    previous_outcome: Outcome = Outcome.UNKNOWN
    previous_reward: float | None = None
    scores: Scores = Scores()
    cost_micro_usd: int = 0
    latency_ms: float = 0.0
    requests: int = 0
    slow_requests: int = 0
    fallbacks: int = 0
    occurred_at: int = 0
    appended_at: int = 0
    stored_at: int = 0
    first_occurred_at: int = 0
    student_failures: int = 0

    @property
    def started_at(self) -> int:
        """When it began: an outcome that comes late makes it no younger. What 1.0.0 wrote says only when it was last heard of."""
        return self.first_occurred_at or self.occurred_at


class Watermark(msgspec.Struct, frozen=True, kw_only=True):
    """How far one worker has read one partition of `agent.events`. Microseconds since the epoch."""

    partition: int
    watermark: int
    position: int
    committed: int
    worker: str


class TeacherTaskKind(StrEnum):
    """Why the teacher is asked again."""

    UNKNOWN = "unknown"
    FAILED = "failed"
    GRAFT = "graft"
    RELABEL = "relabel"
    EVOLVED = "evolved"
    PROBE = "probe"
    UPGRADED = "upgraded"


class TeacherTask(msgspec.Struct, frozen=True, kw_only=True):
    """Run this again with the teacher. `task_id` is uuid5(kind, key, step, teacher fingerprint)."""

    task_id: str
    kind: TeacherTaskKind
    key: str
    tenant: str
    step: int | None = None
    family: str | None = None
    source_task_id: str | None = None
    teacher: str = ""
    priority: float = 0.0
    issued_at: int = 0


class StudentStage(StrEnum):
    """Where a student is in its life. `rolled_back`, `revoked` and `rejected` are terminal; `retired`: once champion, since replaced."""

    UNKNOWN = "unknown"
    REGISTERED = "registered"
    SHADOW = "shadow"
    CANARY = "canary"
    CHAMPION = "champion"
    ROLLED_BACK = "rolled_back"
    REVOKED = "revoked"
    REJECTED = "rejected"
    RETIRED = "retired"


class StudentState(msgspec.Struct, frozen=True, kw_only=True):
    """One decision about a student; `prev` is the offset of the state it was decided on (-1: the first). See `route_state`.

    `stage_index`, `final` and `paused` are of a canary's stage; `plan` is a JSON object of what was frozen when the canary started;
    `skip_gate` releases a student without the offline gate.
    """

    student: str
    stage: StudentStage
    route: str = ""
    share: float = 0.0
    prev: int = -1
    window: str = ""
    manifest_sha256: str = ""
    reason: str = ""
    decided_by: str = ""
    decided_at: int = 0
    stage_index: int = 0
    final: bool = False
    paused: bool = False
    plan: str = ""
    skip_gate: bool = False


class CanaryVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """One decision of the canary controller with all its numbers, as a JSON object in `numbers`."""

    student: str
    route: str
    verdict: str
    epoch: int
    numbers: str
    alpha_before: float
    alpha_after: float
    decided_at: int


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """Forget a subject of a tenant."""

    tenant: str
    subject: str
    requested_at: int
    reason: str = ""
