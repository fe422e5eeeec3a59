"""One value of everything that goes over a topic, and the golden files made of them.

`python -m tests.schemas.samples` writes the golden files of a new release; it never touches one that exists.
"""

import sys
from pathlib import Path

import msgspec

from stillhouse.schemas import codec_schemas
from stillhouse.schemas.codec import encode
from stillhouse.schemas.events import (
    AgentEvent,
    Assignment,
    Body,
    ClientReport,
    FeedbackGiven,
    FeedbackSource,
    Outcome,
    Policy,
    PolicyRole,
    StepTaken,
    Task,
    TrajectoryEnded,
    TrajectoryStarted,
    Usage,
)
from stillhouse.schemas.facts import (
    CanaryVerdict,
    Erasure,
    Scores,
    StudentStage,
    StudentState,
    TeacherTask,
    TeacherTaskKind,
    TrajectoryFacts,
    Watermark,
)
from stillhouse.schemas.messages import Message, ToolCall

GOLDEN = Path(__file__).parent / "golden"

POLICY = Policy(role=PolicyRole.TEACHER, model="gpt-4o", version="2024-08-06")
ASSIGNMENT = Assignment(route="desk", unit="u-1", experiment="e-1", arm="student", epoch=3)
CALL = ToolCall(id="call_1", name="find_order", arguments={"order": "A-17", "lines": [1, 2.5, None, {"x": True}]})
STARTED = TrajectoryStarted(
    task=Task(id="t-1", family="refund", instruction="Refund order A-17, café."),
    system_prompt="You are the order desk.",
    tools=({"type": "function", "function": {"name": "find_order", "parameters": {"type": "object"}}},),
    attempt=2,
    parent_trajectory="run-0",
    resume_step=4,
    environment="order-desk/1",
    subject="customer-9",
)
STEP = StepTaken(
    index=0,
    state=(Message(role="user", content=[{"type": "text", "text": "Refund A-17"}]),),
    action=Message(role="assistant", content=None, reasoning="Look it up first.", tool_calls=(CALL,), extra={"refusal": None}),
    observation=(Message(role="tool", content='{"found": true}', tool_call_id="call_1", name="find_order"),),
    usage=Usage(input_tokens=812, output_tokens=40, cached_tokens=512, reasoning_tokens=12),
    cost_micro_usd=2430,
    latency_ms=812.5,
    error="tool timed out once",
    logprobs='[{"token": "a", "logprob": -0.25}]',
)
BODIES: tuple[Body, ...] = (
    STARTED,
    STEP,
    TrajectoryEnded(steps=1, outcome=Outcome.SUCCESS, reward=0.75, verifier="order-desk/1"),
    FeedbackGiven(
        source=FeedbackSource.VERIFIER,
        source_version="2",
        step=0,
        outcome=Outcome.FAILURE,
        reward=-1.5,
        label="wrong customer",
        revises="ev-0",
        retracted=True,
    ),
    ClientReport(dropped={"too_large": 2, "queue_full": 1}),
)


def event(body: Body, event_id: str = "01920000-0000-7000-8000-000000000001") -> AgentEvent:
    """An event with every envelope field set."""
    return AgentEvent(
        event_id=event_id,
        tenant="acme/eu",
        trajectory_id="run 1",
        occurred_at=1_717_200_000_123_456,
        agent="desk",
        policy=POLICY,
        assignment=ASSIGNMENT,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        body=body,
    )


OTHERS: tuple[object, ...] = (
    TrajectoryFacts(
        key="acme%2Feu/run%201",
        tenant="acme/eu",
        trajectory_id="run 1",
        revision=5,
        content="c0ffee",
        status="ended",
        outcome=Outcome.SUCCESS,
        task_id="t-1",
        family="refund",
        subject="customer-9",
        agent="desk",
        policies=(POLICY, Policy(role=PolicyRole.STUDENT, model="student-1-abcdef01")),
        assignment=ASSIGNMENT,
        parent_trajectory="run-0",
        resume_step=4,
        outcome_source="verifier",
        reward=0.75,
        previous_revision=4,
        previous_outcome=Outcome.UNKNOWN,
        previous_reward=0.5,
        scores=Scores(steps=1, error_steps=1, repeated_calls=2, format_errors=3, input_tokens=812, output_tokens=40),
        cost_micro_usd=2430,
        latency_ms=812.5,
        requests=3,
        slow_requests=1,
        fallbacks=1,
        occurred_at=1_717_200_000_123_456,
        appended_at=1_717_200_001_000_000,
        stored_at=1_717_200_002_000_000,
        first_occurred_at=1_717_199_990_000_000,
        student_failures=1,
    ),
    Watermark(partition=3, watermark=1_717_200_001_000_000, position=120, committed=100, worker="ingest-0"),
    TeacherTask(
        task_id="6f1c2c3e-0000-5000-8000-000000000001",
        kind=TeacherTaskKind.GRAFT,
        key="acme%2Feu/run%201",
        tenant="acme/eu",
        step=4,
        family="refund",
        source_task_id="t-1",
        teacher="gpt-4o@2024-08-06",
        priority=0.9,
        issued_at=1_717_200_003_000_000,
    ),
    StudentState(
        student="student-1-abcdef01",
        stage=StudentStage.ROLLED_BACK,
        route="desk",
        share=0.05,
        prev=17,
        window="window-1",
        manifest_sha256="ab" * 32,
        reason="worse than the teacher",
        decided_by="canary",
        decided_at=1_717_200_004_000_000,
        stage_index=1,
        final=True,
        paused=True,
        plan='{"margin": 0.05}',
        skip_gate=True,
    ),
    CanaryVerdict(
        student="student-1-abcdef01",
        route="desk",
        verdict="rollback",
        epoch=3,
        numbers='{"n": 120, "difference": -0.08}',
        alpha_before=0.05,
        alpha_after=0.02,
        decided_at=1_717_200_004_000_000,
    ),
    Erasure(tenant="acme/eu", subject="customer-9", requested_at=1_717_200_005_000_000, reason="asked to"),
)

# File stem without the version -> value. An event has one file for each body.
SAMPLES: dict[str, object] = {f"AgentEvent.{type(body).__name__}": event(body) for body in BODIES} | {
    type(value).__name__: value for value in OTHERS
}


def golden_name(stem: str) -> str:
    """The stem with the newest version of its record: `AgentEvent-1.0.0.StepTaken`."""
    name, _, body = stem.partition(".")
    return f"{name}-{codec_schemas.newest(name).version}{f'.{body}' if body else ''}"


def main() -> None:
    """Write the golden files that are missing."""
    GOLDEN.mkdir(exist_ok=True)
    for stem, value in SAMPLES.items():
        target = GOLDEN / f"{golden_name(stem)}.bin"
        if target.exists():
            sys.stdout.write(f"{target.name} is released and stays\n")
            continue
        target.write_bytes(encode(value))
        target.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(value)) + b"\n")


if __name__ == "__main__":
    main()
