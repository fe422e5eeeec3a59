"""Events of made-up trajectories, the same for the same number."""

from collections.abc import Sequence

import msgspec

from stillhouse.schemas.events import (
    AgentEvent,
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
from stillhouse.schemas.messages import Message, ToolCall

STUDENT = Policy(role=PolicyRole.STUDENT, model="student-1-abcdef01")
TEACHER = Policy(role=PolicyRole.TEACHER, model="big", version="1")


def event(body: object, number: int = 0, name: str = "t", at: int = 0, tenant: str = "acme", suffix: str = "") -> AgentEvent:
    """One event; its id follows from its place and kind."""
    event_id = f"{name}-{number}-{at}-{type(body).__name__}{suffix}"
    return AgentEvent(
        event_id=event_id,
        tenant=tenant,
        trajectory_id=f"{name}-{number}",
        occurred_at=1_700_000_000_000_000 + at,
        body=body,  # type: ignore[arg-type]
        agent="desk",
        policy=TEACHER,
    )


def fallback(
    number: int, index: int, error: str = "format: no call", at: int | None = None, name: str = "t", tenant: str = "acme"
) -> AgentEvent:
    """A student's failed answer to a step, of the moment before the teacher's."""
    body = StepTaken(index=index, action=Message(role="assistant", content="{oops"), error=error)
    failed = event(body, number, name, index if at is None else at, tenant, suffix="failed")
    return msgspec.structs.replace(failed, policy=STUDENT)


def step(index: int | None, order: int = 0, **changes: object) -> StepTaken:
    """A step that calls a tool and is answered."""
    call = ToolCall(id=f"c{index}-{order}", name="look_up", arguments={"order": order, "step": index or 0})
    values: dict[str, object] = {
        "action": Message(role="assistant", content=None, tool_calls=(call,)),
        "observation": (Message(role="tool", tool_call_id=call.id, content=f"order {order} is at step {index}"),),
        "usage": Usage(input_tokens=100, output_tokens=10),
        "cost_micro_usd": 50,
        "latency_ms": 120.0,
    }
    return StepTaken(index=index, **(values | changes))  # type: ignore[arg-type]


def trajectory(
    number: int, steps: int = 3, name: str = "t", tenant: str = "acme", outcome: Outcome = Outcome.SUCCESS, family: str | None = "refund"
) -> list[AgentEvent]:
    """Start, steps, end."""
    task = Task(id=f"task-{number}", family=family, instruction=f"Refund order {number}")
    started = TrajectoryStarted(task=task, system_prompt="You are a desk.", environment="desk/1")
    bodies: Sequence[object] = [
        started,
        *(step(k, number) for k in range(steps)),
        TrajectoryEnded(steps=steps, outcome=outcome, reward=1.0 if outcome is Outcome.SUCCESS else 0.0),
    ]
    return [event(body, number, name, at, tenant) for at, body in enumerate(bodies)]


def feedback(number: int, outcome: Outcome, at: int = 900, name: str = "t", tenant: str = "acme", **changes: object) -> AgentEvent:
    """A verifier's word on a trajectory."""
    values: dict[str, object] = {"source": FeedbackSource.VERIFIER, "outcome": outcome} | changes
    return event(FeedbackGiven(**values), number, name, at, tenant, suffix=str(sorted(map(str, values.items()))))  # type: ignore[arg-type]
