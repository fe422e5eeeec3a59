"""The hot path of step 2: a `StepTaken` in the layout of the newest released schema, read without fastavro's records.

Most events are steps, and most are written with this release. What is anything else, or odd in any way, gives None and goes to
the codec, which decides: a value is accepted here only if it is exactly what the codec makes of it (a property test says so).
"""

from struct import Struct
from struct import error as StructError
from typing import Any

import msgspec

from stillhouse.schemas import codec_schemas
from stillhouse.schemas.events import AgentEvent, Policy, PolicyRole, StepTaken, Usage
from stillhouse.schemas.messages import Message

_message = msgspec.json.Decoder(Message).decode
_messages = msgspec.json.Decoder(tuple[Message, ...]).decode
_double = Struct("<d").unpack_from

_ROLES = (PolicyRole.UNKNOWN, PolicyRole.TEACHER, PolicyRole.STUDENT, PolicyRole.HUMAN, PolicyRole.SCRIPT)
_STEP = 2  # the second branch of the body's union, as a zigzag integer
_ENVELOPE = (
    *("event_id", "tenant", "trajectory_id", "occurred_at", "agent", "policy_role", "policy_model", "policy_version"),
    *("assignment", "traceparent", "body"),
)
_FIELDS = (
    *("index", "state", "action", "observation", "input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens"),
    *("cost_micro_usd", "latency_ms", "error", "logprobs"),
)
_policies: dict[tuple[int, str, str], Policy] = {}


def _long(data: bytes, at: int) -> tuple[int, int]:
    """A zigzag integer of any length, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at
        shift += 7
        if shift > 63:
            raise ValueError("an integer of more than 64 bits")


def _text(data: bytes, at: int) -> tuple[str, int]:
    size = data[at]
    if size < 0x80:
        at += 1
        size >>= 1
    else:
        size, at = _long(data, at)
        if size < 0:
            raise ValueError("a negative length")
    end = at + size
    return data[at:end].decode(), end


def _maybe_long(data: bytes, at: int) -> tuple[int | None, int]:
    branch = data[at]
    if branch == 2:
        value = data[at + 1]
        return (_long(data, at + 1)) if value >= 0x80 else ((value >> 1) ^ -(value & 1), at + 2)
    if branch:
        raise ValueError("no such branch")
    return None, at + 1


def _maybe_text(data: bytes, at: int) -> tuple[str | None, int]:
    branch = data[at]
    if branch == 2:
        return _text(data, at + 1)
    if branch:
        raise ValueError("no such branch")
    return None, at + 1


def _policy(role: int, model: str, version: str) -> Policy:
    found = _policies.get((role, model, version))
    if found is None:
        if role & 1 or role >> 1 >= len(_ROLES):
            raise ValueError("no such role")
        found = Policy(role=_ROLES[role >> 1], model=model, version=version)
        if len(_policies) < 4096:
            _policies[role, model, version] = found
    return found


def _step(data: bytes, at: int) -> tuple[StepTaken, int]:
    index, at = _maybe_long(data, at)
    state, at = _text(data, at)
    action, at = _text(data, at)
    observation, at = _text(data, at)
    tokens_in, at = _maybe_long(data, at)
    tokens_out, at = _maybe_long(data, at)
    cached, at = _maybe_long(data, at)
    reasoning, at = _maybe_long(data, at)
    cost, at = _maybe_long(data, at)
    latency = None
    branch = data[at]
    at += 1
    if branch == 2:
        latency = _double(data, at)[0]
        at += 8
    elif branch:
        raise ValueError("no such branch")
    error, at = _maybe_text(data, at)
    logprobs, at = _maybe_text(data, at)
    body = StepTaken(
        index=index,
        state=() if state == "[]" else _messages(state),
        action=_message(action),
        observation=() if observation == "[]" else _messages(observation),
        usage=Usage(input_tokens=tokens_in, output_tokens=tokens_out, cached_tokens=cached, reasoning_tokens=reasoning),
        cost_micro_usd=cost,
        latency_ms=latency,
        error=error,
        logprobs=logprobs,
    )
    return body, at


def _head() -> bytes:
    """How a value begins that this module reads; nothing does when a newer release has changed the layout."""

    def names(fields: list[dict[str, Any]]) -> tuple[str, ...]:
        return tuple(field["name"] for field in fields)

    newest: Any = codec_schemas.newest("AgentEvent")
    fields = newest.schema["fields"]
    same = names(fields) == _ENVELOPE and names(fields[-1]["type"][1]["fields"]) == _FIELDS
    return b"\xc3\x01" + newest.fingerprint if same else b"\0"


HEAD = _head()


def step_event(data: bytes) -> AgentEvent | None:
    """The event, if it is a step without an assignment in the newest layout; else None: ask the codec."""
    if data[:10] != HEAD:
        return None
    try:
        event_id, at = _text(data, 10)
        tenant, at = _text(data, at)
        trajectory_id, at = _text(data, at)
        occurred_at, at = _long(data, at)
        agent, at = _text(data, at)
        role = data[at]
        model, at = _text(data, at + 1)
        version, at = _text(data, at)
        if data[at]:
            return None
        traceparent, at = _maybe_text(data, at + 1)
        if data[at] != _STEP:
            return None
        body, at = _step(data, at + 1)
        if at != len(data) or not (event_id and tenant and trajectory_id):
            return None
        policy = _policy(role, model, version)
    except (ValueError, IndexError, StructError, msgspec.MsgspecError, RecursionError):
        return None
    return AgentEvent(
        event_id=event_id,
        tenant=tenant,
        trajectory_id=trajectory_id,
        occurred_at=occurred_at,
        body=body,
        agent=agent,
        policy=policy,
        traceparent=traceparent,
    )
