"""Intrinsic scores of a trajectory: what it shows by itself. Nothing here depends on another trajectory or on a clock."""

from typing import Any

import msgspec

from stillhouse.schemas.facts import Scores
from stillhouse.schemas.messages import Message, ToolCall
from stillhouse.schemas.trajectory import Step, Trajectory, is_malformed

_canonical = msgspec.json.Encoder(order="deterministic").encode


def score(trajectory: Trajectory) -> Scores:
    """Count steps, error steps, repeated calls, format errors and tokens.

    Format errors are also a student's that the teacher answered in its place: they are its arm's, though the row's step is the teacher's.
    """
    seen: set[tuple[str, bytes]] = set()
    errors = repeated = tokens_in = tokens_out = 0
    malformed = trajectory.malformed
    for step in trajectory.steps:
        errors += is_error(step)
        malformed += _malformed(step)
        for call in step.action.tool_calls:
            said = (call.name, _arguments(call))
            repeated += said in seen
            seen.add(said)
        tokens_in += step.usage.input_tokens or 0
        tokens_out += step.usage.output_tokens or 0
    return Scores(
        steps=len(trajectory.steps),
        error_steps=errors,
        repeated_calls=repeated,
        format_errors=malformed,
        input_tokens=tokens_in,
        output_tokens=tokens_out,
    )


def is_error(step: Step) -> bool:
    """Whether the step failed: by its own word, or because a tool answered with an error."""
    return step.error is not None or any(message.role == "tool" and _says_error(message) for message in step.observation)


def _malformed(step: Step) -> int:
    """How many of its actions could not be read: calls whose arguments are no JSON, else the whole of a student's reply."""
    calls = sum(call.raw_arguments is not None for call in step.action.tool_calls)
    return calls or is_malformed(step.policy, step.error)


def _says_error(message: Message) -> bool:
    text = message.text.lstrip()
    if text[:5].lower() == "error" or message.extra.get("is_error") is True:
        return True
    if text[:1] != "{" or '"error"' not in text:
        return False
    try:
        answer: Any = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return False
    return bool(answer.get("error"))


def _arguments(call: ToolCall) -> bytes:
    return call.raw_arguments.encode() if call.raw_arguments is not None else _canonical(call.arguments)
