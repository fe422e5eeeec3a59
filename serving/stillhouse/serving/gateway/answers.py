"""One answer to a request, by whoever gave it, and what becomes of it: events and money."""

import uuid
from collections.abc import Sequence
from typing import Any

import msgspec

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.events import (
    AgentEvent,
    Assignment,
    FeedbackGiven,
    FeedbackSource,
    Outcome,
    Policy,
    PolicyRole,
    StepTaken,
    Task,
    TrajectoryStarted,
    Usage,
)
from stillhouse.schemas.keys import split_key
from stillhouse.schemas.messages import Message
from stillhouse.schemas.openai import message_from_openai
from stillhouse.schemas.trajectory import FORMAT_ERROR
from stillhouse.serving.gateway.backend import Call, Reply
from stillhouse.serving.gateway.identity import new_messages
from stillhouse.serving.gateway.memory import Run
from stillhouse.serving.gateway.requests import Given

_SPACE = uuid.uuid5(uuid.NAMESPACE_URL, "stillhouse:gateway")


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What one variant made of a request.

    Args:
        policy: who answered.
        message: what it said; None when that is no chat message.
        usage: its tokens.
        cost_micro_usd: what it cost.
        estimated: the tokens were estimated, because the upstream did not say them.
        error: what went wrong.
        logprobs: as the upstream returned them, JSON.
    """

    policy: Policy
    message: Message | None
    usage: Usage
    cost_micro_usd: int
    estimated: bool = False
    error: str | None = None
    logprobs: str | None = None


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """One request with all that its events need.

    Args:
        request_id: the gateway's own; event ids are derived from it.
        call: the request.
        given: its headers.
        run: its trajectory.
        first: it began the trajectory.
        received_at: microseconds since the epoch.
        traceparent: the caller's trace context.
    """

    request_id: str
    call: Call
    given: Given
    run: Run
    first: bool
    received_at: int
    traceparent: str | None = None

    @property
    def assignment(self) -> Assignment | None:
        """The arm of its unit; None when it has no unit."""
        return assignment_of(self.run)


def assignment_of(run: Run) -> Assignment | None:
    """The arm of a run's unit; None when it has no unit."""
    if run.unit is None:
        return None
    return Assignment(route=run.route, unit=run.unit, experiment=run.experiment, arm=run.arm, epoch=run.epoch)


def usage_of(wire: Any) -> Usage | None:
    """OpenAI's usage object; None when it names no tokens."""
    if not isinstance(wire, dict):
        return None
    given, written = wire.get("prompt_tokens"), wire.get("completion_tokens")
    if type(given) is not int or type(written) is not int or given < 0 or written < 0:
        return None
    return Usage(
        input_tokens=given,
        output_tokens=written,
        cached_tokens=_detail(wire, "prompt_tokens_details", "cached_tokens"),
        reasoning_tokens=_detail(wire, "completion_tokens_details", "reasoning_tokens"),
    )


def _detail(wire: dict[str, Any], group: str, name: str) -> int | None:
    found = (wire.get(group) or {}).get(name) if isinstance(wire.get(group), dict | None) else None
    return found if type(found) is int and found >= 0 else None


def message_of(wire: Any) -> Message | None:
    """A reply's message, None when it is none."""
    try:
        return message_from_openai(wire)
    except PermanentError:
        return None


def student_answer(student: str, reply: Reply, cost_micro_usd: int) -> Answer:
    """What a student said."""
    return Answer(
        policy=Policy(role=PolicyRole.STUDENT, model=student),
        message=message_of({"role": "assistant"} | reply.message),
        usage=Usage(input_tokens=reply.input_tokens, output_tokens=reply.output_tokens, cached_tokens=reply.cached_tokens),
        cost_micro_usd=cost_micro_usd,
        error=f"{FORMAT_ERROR} {reply.format_error}" if reply.format_error else None,
    )


def events_of(exchange: Exchange, answers: Sequence[Answer], now: int) -> list[AgentEvent]:
    """The events of a request.

    The last answer is the step; those before it failed, and are superseded by it: it carries the cost and latency of the whole request,
    which are its arm's.

    Args:
        exchange: the request.
        answers: in the order in which they were tried; at least one.
        now: microseconds since the epoch.
    """
    call, events = exchange.call, []
    if exchange.first and exchange.given.trajectory is None:
        task = Task(id=exchange.given.task, family=exchange.given.family or call.route)
        started = TrajectoryStarted(task=task, system_prompt=call.system_prompt, tools=call.tools)
        identity = str(uuid.uuid5(_SPACE, f"{exchange.run.key}/start"))
        events.append(_event(exchange, identity, exchange.received_at, started, answers[0].policy))
    latency = (now - exchange.received_at) / 1000
    total = sum(answer.cost_micro_usd for answer in answers)
    for place, answer in enumerate(answers):
        last = place == len(answers) - 1
        step = _step(exchange, answer, cost=total if last else answer.cost_micro_usd, latency=latency)
        # Of two steps with one index the later counts.
        at = max(now - len(answers) + 1 + place, exchange.received_at + 1 + place)
        identity = str(uuid.uuid5(_SPACE, f"{exchange.request_id}/{'step' if last else f'failed-{place}'}"))
        events.append(_event(exchange, identity, at, step, answer.policy))
    return events


def _step(exchange: Exchange, answer: Answer, *, cost: int, latency: float) -> StepTaken:
    call = exchange.call
    fresh = new_messages(call.messages)
    if call.step == 0 and exchange.given.trajectory is None:  # the system prompt is our start's; another's may not have one
        leading = next((place for place, message in enumerate(fresh) if message.role != "system"), len(fresh))
        fresh = fresh[leading:]
    return StepTaken(
        action=answer.message or Message(role="assistant"),
        index=call.step,
        state=fresh,
        usage=answer.usage,
        cost_micro_usd=cost,
        latency_ms=latency,
        error=answer.error,
        logprobs=answer.logprobs,
    )


def _event(exchange: Exchange, identity: str, at: int, body: StepTaken | TrajectoryStarted, policy: Policy) -> AgentEvent:
    return AgentEvent(
        event_id=identity,
        tenant=exchange.call.tenant,
        trajectory_id=exchange.call.trajectory,
        occurred_at=at,
        policy=policy,
        assignment=exchange.assignment,
        traceparent=exchange.traceparent,
        body=body,
    )


class OutcomeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/stillhouse/outcomes`.

    Args:
        trajectory: the run's id.
        outcome: success, failure, aborted or unknown.
        reward: any number.
        source: who judges.
        version: which version of the source.
        step: the step that is judged, when it is not the whole.
        label: a word about it.
        revises: the id of the outcome that this one replaces.
        retracted: that one is taken back, and nothing put in its place.
    """

    trajectory: str
    outcome: Outcome = Outcome.UNKNOWN
    reward: float | None = None
    source: FeedbackSource = FeedbackSource.VERIFIER
    version: str = ""
    step: int | None = None
    label: str | None = None
    revises: str | None = None
    retracted: bool = False


def feedback_event(asked: OutcomeRequest, run: Run, now: int) -> AgentEvent:
    """The event of an outcome; its id is that of the judged thing and the one that it revises, so that a retry makes no second."""
    tenant, trajectory = split_key(run.key)
    identity = uuid.uuid5(_SPACE, f"{run.key}/outcome/{asked.source}/{asked.step}/{asked.revises}/{asked.retracted}")
    return AgentEvent(
        event_id=str(identity),
        tenant=tenant,
        trajectory_id=trajectory,
        occurred_at=now,
        assignment=assignment_of(run),
        body=FeedbackGiven(
            source=asked.source,
            source_version=asked.version,
            step=asked.step,
            outcome=asked.outcome,
            reward=asked.reward,
            label=asked.label,
            revises=asked.revises,
            retracted=asked.retracted,
        ),
    )
