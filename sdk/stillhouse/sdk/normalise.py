"""From what an agent passed to the canonical event. Runs on the background thread, on a snapshot's plain JSON values."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from stillhouse.schemas.events import (
    AgentEvent,
    Body,
    ClientReport,
    FeedbackGiven,
    FeedbackSource,
    Outcome,
    Policy,
    StepTaken,
    Task,
    TrajectoryEnded,
    TrajectoryStarted,
    Usage,
)
from stillhouse.schemas.messages import Message, Role, ToolCall
from stillhouse.schemas.openai import message_from_openai
from stillhouse.sdk.handover import Draft

Raw = dict[str, Any]

_CALL_FIELDS = frozenset(ToolCall.__struct_fields__)
_RESULT_FIELDS = frozenset({"call_id", "result"})
_draft = msgspec.json.Decoder(Draft).decode
_event = msgspec.json.Decoder(AgentEvent).decode


class ToolResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a tool answered. `result` may be any JSON value; a text stays as it is."""

    call_id: str
    result: Any


def event_from_snapshot(data: bytes, *, tenant: str, agent: str, policy: Policy) -> AgentEvent:
    """The event a snapshot stands for.

    Args:
        data: the snapshot of a `Draft` (a JSON array) or of a whole `AgentEvent` (an object).
        tenant: the client's tenant, for a draft.
        agent: the client's agent, for a draft.
        policy: the client's policy, for a draft that names none.

    Raises:
        msgspec.ValidationError, ValueError, TypeError, KeyError, OverflowError, RecursionError: no event can be made of it.
        PermanentError: a message is none.
    """
    if data[:1] == b"{":
        return _event(data)
    draft = _draft(data)
    return AgentEvent(
        event_id=draft.event_id,
        tenant=tenant,
        trajectory_id=draft.trajectory_id,
        occurred_at=draft.occurred_at,
        agent=agent,
        policy=policy if draft.policy is None else msgspec.convert(draft.policy, Policy),
        traceparent=draft.fields.pop("traceparent", None),
        body=_BODIES[draft.kind](draft.fields),
    )


def _start(fields: Raw) -> TrajectoryStarted:
    tools = msgspec.convert(fields.pop("tools", ()) or (), tuple[dict[str, Any], ...])
    return TrajectoryStarted(task=task_from(fields.pop("task", None), fields.pop("family", None)), tools=tools, **fields)


def task_from(raw: Any, family: str | None) -> Task:
    """A task from a text (its instruction), an object or nothing; `family` fills a family that the task does not name."""
    if isinstance(raw, str):
        return Task(instruction=raw, family=family)
    named = msgspec.convert(raw or {}, dict[str, Any])
    if isinstance(number := named.get("id"), int):
        named["id"] = str(number)
    task = msgspec.convert(named, Task)
    return task if task.family or family is None else msgspec.structs.replace(task, family=family)


def _step(fields: Raw) -> StepTaken:
    action = action_from(fields.pop("action"))
    logprobs = fields.pop("logprobs", None)
    return StepTaken(
        action=action,
        state=_messages(fields.pop("state", None), "user"),
        observation=observation_from(fields.pop("observation", None), action.tool_calls),
        usage=usage_from(fields.pop("usage", None)),
        logprobs=logprobs if logprobs is None or isinstance(logprobs, str) else msgspec.json.encode(logprobs).decode(),
        **fields,
    )


def _end(fields: Raw) -> TrajectoryEnded:
    return TrajectoryEnded(outcome=outcome_of(fields.pop("outcome", None)), reward=_number(fields.pop("reward", None)), **fields)


def _feedback(fields: Raw) -> FeedbackGiven:
    source = FeedbackSource(fields.pop("source", None) or FeedbackSource.UNKNOWN)
    outcome, reward = outcome_of(fields.pop("outcome", None)), _number(fields.pop("reward", None))
    return FeedbackGiven(source=source, outcome=outcome, reward=reward, **fields)


def _report(fields: Raw) -> ClientReport:
    return ClientReport(dropped=fields)


_BODIES: dict[str, Callable[[Raw], Body]] = {"start": _start, "step": _step, "end": _end, "feedback": _feedback, "report": _report}


def outcome_of(raw: Any) -> Outcome:
    """An outcome as an agent says it: by name, or True and False for success and failure; None is unknown.

    Raises:
        ValueError: it is none.
    """
    if isinstance(raw, bool):
        return Outcome.SUCCESS if raw else Outcome.FAILURE
    return Outcome.UNKNOWN if raw is None else Outcome(raw)


def _number(raw: Any) -> float | None:
    return None if raw is None else float(raw)


def message_from(raw: Any, role: Role) -> Message:
    """One message: a canonical one, an OpenAI object, or a text spoken in `role`.

    Raises:
        msgspec.ValidationError, PermanentError: it is none of these.
    """
    if isinstance(raw, str):
        return Message(role=role, content=raw)
    if isinstance(raw, dict) and _is_canonical(raw):
        return msgspec.convert({"role": role} | raw, Message)
    return message_from_openai({"role": role} | msgspec.convert(raw, dict[str, Any]))


def _is_canonical(raw: Raw) -> bool:
    """Whether a snapshot's object was a `Message`. Without calls and extras the two forms are the same."""
    calls = raw.get("tool_calls") or ()
    return "extra" in raw or any("name" in call for call in calls)


def _messages(raw: Any, role: Role) -> tuple[Message, ...]:
    if raw is None:
        return ()
    return tuple(message_from(item, role) for item in (raw if isinstance(raw, list) else [raw]))


def action_from(raw: Any) -> Message:
    """The assistant's message: a message, a text, a `ToolCall`, or several of these calls."""
    calls = raw if isinstance(raw, list) else [raw]
    if calls and all(isinstance(c, dict) and "name" in c and c.keys() <= _CALL_FIELDS for c in calls):
        return Message(role="assistant", tool_calls=msgspec.convert(calls, tuple[ToolCall, ...]))
    message = message_from(raw, "assistant")
    if message.role != "assistant":
        raise ValueError("an action is an assistant's message")
    return message


def observation_from(raw: Any, calls: Sequence[ToolCall]) -> tuple[Message, ...]:
    """What answered an action: messages, `ToolResult`s, or bare results of its calls in their order.

    A bare result without a call to answer is a user's message.
    """
    if raw is None:
        return ()
    parts = _parts(raw, max(1, len(calls)))
    return tuple(_answer(part, calls[place] if place < len(calls) else None) for place, part in enumerate(parts))


def _parts(raw: Any, calls: int) -> list[Any]:
    """A list is several answers, or itself the one result of one call."""
    if not isinstance(raw, list):
        return [raw]
    if all(_says_what_it_is(item) for item in raw) or len(raw) == calls > 1:
        return raw
    texts = all(isinstance(item, str) or _says_what_it_is(item) for item in raw)
    return raw if texts and len(raw) <= calls else [raw]


def _says_what_it_is(item: Any) -> bool:
    return isinstance(item, dict) and ("role" in item or item.keys() == _RESULT_FIELDS)


def _answer(item: Any, call: ToolCall | None) -> Message:
    if isinstance(item, dict) and "role" in item:
        return message_from(item, "tool")
    if isinstance(item, dict) and item.keys() == _RESULT_FIELDS:
        return Message(role="tool", content=_text(item["result"]), tool_call_id=msgspec.convert(item["call_id"], str))
    if call is None:
        return Message(role="user", content=_text(item))
    return Message(role="tool", content=_text(item), tool_call_id=call.id, name=call.name)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def usage_from(raw: Any) -> Usage:
    """Token counts under our names or OpenAI's (chat completions and responses)."""
    if raw is None:
        return Usage()
    raw = msgspec.convert(raw, dict[str, Any])

    def first(*paths: tuple[str, ...]) -> int | None:
        for path in paths:
            value: Any = raw
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            if value is not None:
                return msgspec.convert(value, int)
        return None

    return Usage(
        input_tokens=first(("input_tokens",), ("prompt_tokens",)),
        output_tokens=first(("output_tokens",), ("completion_tokens",)),
        cached_tokens=first(("cached_tokens",), ("prompt_tokens_details", "cached_tokens"), ("input_tokens_details", "cached_tokens")),
        reasoning_tokens=first(
            ("reasoning_tokens",), ("completion_tokens_details", "reasoning_tokens"), ("output_tokens_details", "reasoning_tokens")
        ),
    )
