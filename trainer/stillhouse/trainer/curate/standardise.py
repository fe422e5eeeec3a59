"""Stage `standardise`: every action in the canonical form, whatever the agent wrote; lossless, or dropped with the reason."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from stillhouse.schemas.messages import Message, ToolCall
from stillhouse.trainer.curate.draft import Draft, DraftStep, with_steps
from stillhouse.trainer.curate.formats import READERS, Refused, Written, fenced
from stillhouse.trainer.curate.stage import StageResult, transform

Tools = Mapping[str, Mapping[str, Any]]


def standardise(drafts: Sequence[Draft]) -> StageResult:
    """Standardise every supervised action; others are context and stay as they were. `rewritten` counts actions read from text."""
    notes: Counter[str] = Counter()
    result = transform("standardise", drafts, lambda d: _draft(d, notes))
    return result._replace(notes=dict(sorted(notes.items())))


def _draft(draft: Draft, notes: Counter[str]) -> Draft | str:
    tools = _definitions(draft.trajectory.tools)
    textual = not any(s.action.tool_calls or any(m.role == "tool" for m in s.observation) for s in draft.steps)
    steps, rewritten = list(draft.steps), 0
    for i, step in enumerate(steps):
        if not step.supervised:
            continue
        reading = _reading(step.action, tools, _answer(steps, i), textual)
        if isinstance(reading, str):
            return reading
        if reading is not None:
            _rewrite(steps, i, reading, f"{draft.key}#{i}")
            rewritten += 1
    notes["rewritten"] += rewritten
    return with_steps(draft, steps)


def _answer(steps: Sequence[DraftStep], i: int) -> Message | None:
    """The message that answered a step, where an environment answers in text: its observation, or the next step's state."""
    following = steps[i].observation or (steps[i + 1].state if i + 1 < len(steps) else ())
    return following[0] if following else None


def _reading(action: Message, tools: Tools, answer: Message | None, textual: bool) -> Written | str | None:
    """The action in a text; None when the message is canonical already; a string is the reason it cannot be had.

    Only where the whole run is text did text run: beside real tool calls a call in a text was never executed.
    """
    if action.tool_calls:
        return _unusable(action, tools)
    if not action.text.strip():
        return "empty_action"
    by, reading = next(((r, found) for r in READERS if (found := r(action.text, tools)) is not None), (None, None))
    if isinstance(reading, Refused):
        return reading.reason
    if reading is None or not reading.name:
        return reading
    if tools and reading.name not in tools:
        return "unknown_tool"
    ran = textual if answer is None or answer.role != "tool" else True
    if by is fenced and (not ran or answer is None):
        return None  # code that a reply shows, and nothing ran
    return reading if ran else "call_as_text"


def _unusable(action: Message, tools: Tools) -> str | None:
    """Why a message's own calls cannot be learned from."""
    if any(c.raw_arguments is not None for c in action.tool_calls):
        return "bad_arguments"
    return "unknown_tool" if tools and any(c.name not in tools for c in action.tool_calls) else None


def _rewrite(steps: list[DraftStep], i: int, read: Written, seed: str) -> None:
    """Put a canonical action in the place of a text, and its answer in the place of a tool's result."""
    step, replace = steps[i], msgspec.structs.replace
    calls = (ToolCall(id=f"text-{seed}", name=read.name, arguments=read.arguments),) if read.name else ()
    reasoning = "\n".join(r for r in (step.action.reasoning, read.reasoning) if r) or None
    steps[i] = replace(step, action=replace(step.action, content=read.content, reasoning=reasoning, tool_calls=calls))
    answer = _answer(steps, i)
    if not calls or answer is None:
        return
    result = _result(answer, calls[0])
    if step.observation:
        steps[i] = replace(steps[i], observation=(result, *step.observation[1:]))
    else:
        steps[i] = replace(steps[i], observation=(result,))
        steps[i + 1] = replace(steps[i + 1], state=steps[i + 1].state[1:])


def _result(answer: Message, call: ToolCall) -> Message:
    """The answer of a text environment as the call's result. The label `Observation:` is markup, not content."""
    text = answer.text.removeprefix("Observation:").lstrip() if answer.text.startswith("Observation:") else answer.text
    return Message(role="tool", content=text, tool_call_id=call.id, extra=answer.extra)


def _definitions(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    functions = [t.get("function", t) for t in tools]
    return {str(f["name"]): f for f in functions if isinstance(f, Mapping) and "name" in f}
