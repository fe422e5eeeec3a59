"""Between our classes and the flat Avro records of `avro/`: the hot path of ingest, so it is plain code without reflection."""

from collections.abc import Callable
from typing import Any

import msgspec

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
from stillhouse.schemas.messages import Message

Record = dict[str, Any]

_NO_MESSAGES = "[]"
_encode = msgspec.json.Encoder().encode
_message = msgspec.json.Decoder(Message).decode
_messages = msgspec.json.Decoder(tuple[Message, ...]).decode
_tools = msgspec.json.Decoder(tuple[dict[str, Any], ...]).decode

# A lookup is several times cheaper than calling the enumeration.
_ROLE = {role.value: role for role in PolicyRole}
_OUTCOME = {outcome.value: outcome for outcome in Outcome}
_SOURCE = {source.value: source for source in FeedbackSource}


def _text(values: tuple[Any, ...]) -> str:
    return _encode(values).decode() if values else _NO_MESSAGES


def _started_record(body: TrajectoryStarted) -> Record:
    task = body.task
    return {
        "task_id": task.id,
        "task_family": task.family,
        "task_instruction": task.instruction,
        "system_prompt": body.system_prompt,
        "tools": _text(body.tools),
        "attempt": body.attempt,
        "parent_trajectory": body.parent_trajectory,
        "resume_step": body.resume_step,
        "environment": body.environment,
        "subject": body.subject,
    }


def _started(record: Record) -> TrajectoryStarted:
    tools = record["tools"]
    return TrajectoryStarted(
        task=Task(id=record["task_id"], family=record["task_family"], instruction=record["task_instruction"]),
        system_prompt=record["system_prompt"],
        tools=() if tools == _NO_MESSAGES else _tools(tools),
        attempt=record["attempt"],
        parent_trajectory=record["parent_trajectory"],
        resume_step=record["resume_step"],
        environment=record["environment"],
        subject=record["subject"],
    )


def _step_record(body: StepTaken) -> Record:
    usage = body.usage
    return {
        "index": body.index,
        "state": _text(body.state),
        "action": _encode(body.action).decode(),
        "observation": _text(body.observation),
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cached_tokens": usage.cached_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "cost_micro_usd": body.cost_micro_usd,
        "latency_ms": body.latency_ms,
        "error": body.error,
        "logprobs": body.logprobs,
    }


def _step(record: Record) -> StepTaken:
    state, observation = record["state"], record["observation"]
    return StepTaken(
        index=record["index"],
        state=() if state == _NO_MESSAGES else _messages(state),
        action=_message(record["action"]),
        observation=() if observation == _NO_MESSAGES else _messages(observation),
        usage=Usage(
            input_tokens=record["input_tokens"],
            output_tokens=record["output_tokens"],
            cached_tokens=record["cached_tokens"],
            reasoning_tokens=record["reasoning_tokens"],
        ),
        cost_micro_usd=record["cost_micro_usd"],
        latency_ms=record["latency_ms"],
        error=record["error"],
        logprobs=record["logprobs"],
    )


def _ended_record(body: TrajectoryEnded) -> Record:
    return {"steps": body.steps, "outcome": body.outcome, "reward": body.reward, "verifier": body.verifier}


def _ended(record: Record) -> TrajectoryEnded:
    return TrajectoryEnded(steps=record["steps"], outcome=_OUTCOME[record["outcome"]], reward=record["reward"], verifier=record["verifier"])


def _feedback_record(body: FeedbackGiven) -> Record:
    return {field: getattr(body, field) for field in FeedbackGiven.__struct_fields__}


def _feedback(record: Record) -> FeedbackGiven:
    return FeedbackGiven(**(record | {"source": _SOURCE[record["source"]], "outcome": _OUTCOME[record["outcome"]]}))


def _report_record(body: ClientReport) -> Record:
    return {"dropped": body.dropped}


def _report(record: Record) -> ClientReport:
    return ClientReport(dropped=record["dropped"])


_TO_RECORD: dict[type, tuple[str, Callable[[Any], Record]]] = {
    TrajectoryStarted: ("stillhouse.TrajectoryStarted", _started_record),
    StepTaken: ("stillhouse.StepTaken", _step_record),
    TrajectoryEnded: ("stillhouse.TrajectoryEnded", _ended_record),
    FeedbackGiven: ("stillhouse.FeedbackGiven", _feedback_record),
    ClientReport: ("stillhouse.ClientReport", _report_record),
}
_FROM_RECORD: dict[str, Callable[[Record], Body]] = {
    "stillhouse.TrajectoryStarted": _started,
    "stillhouse.StepTaken": _step,
    "stillhouse.TrajectoryEnded": _ended,
    "stillhouse.FeedbackGiven": _feedback,
    "stillhouse.ClientReport": _report,
}


def event_to_record(event: AgentEvent) -> Record:
    """An event as the Avro writer takes it; its body names its branch of the union."""
    name, to_record = _TO_RECORD[type(event.body)]
    return {
        "event_id": event.event_id,
        "tenant": event.tenant,
        "trajectory_id": event.trajectory_id,
        "occurred_at": event.occurred_at,
        "agent": event.agent,
        "policy_role": event.policy.role,
        "policy_model": event.policy.model,
        "policy_version": event.policy.version,
        "assignment": None if event.assignment is None else msgspec.structs.asdict(event.assignment),
        "traceparent": event.traceparent,
        "body": (name, to_record(event.body)),
    }


def event_from_record(record: Record) -> AgentEvent:
    """The inverse of `event_to_record`.

    Raises:
        msgspec.DecodeError: a JSON string inside is not what its field says.
        KeyError: a symbol or branch that this version does not know.
        ValueError: an event without an id, a tenant or a trajectory.
    """
    name, body = record["body"]
    if not (record["event_id"] and record["tenant"] and record["trajectory_id"]):
        raise ValueError("event_id, tenant and trajectory_id must not be empty")
    assignment = record["assignment"]
    return AgentEvent(
        event_id=record["event_id"],
        tenant=record["tenant"],
        trajectory_id=record["trajectory_id"],
        occurred_at=record["occurred_at"],
        agent=record["agent"],
        policy=Policy(role=_ROLE[record["policy_role"]], model=record["policy_model"], version=record["policy_version"]),
        assignment=None if assignment is None else Assignment(**assignment),
        traceparent=record["traceparent"],
        body=_FROM_RECORD[name](body),
    )
