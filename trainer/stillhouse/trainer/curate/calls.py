"""Calls and what answered them: the view of a trajectory that pruning works on."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from stillhouse.schemas.messages import Message, ToolCall
from stillhouse.trainer.curate.draft import DraftStep

_ERROR_TEXT = ("error", "traceback", "exception", "failed:", "failure:")


class Call(NamedTuple):
    """One call at `step` and `place` (its position among the step's calls), with its result; `result` None: none was recorded."""

    step: int
    place: int
    call: ToolCall
    result: Message | None
    failed: bool

    @property
    def at(self) -> tuple[int, int]:
        """Where it is."""
        return (self.step, self.place)

    @property
    def identity(self) -> str:
        """Tool and arguments, canonically."""
        return json.dumps([self.call.name, self.call.arguments, self.call.raw_arguments], sort_keys=True)


def calls_of(steps: Sequence[DraftStep]) -> list[Call]:
    """All calls in order."""
    return [call for i, step in enumerate(steps) for call in _of_step(i, step)]


def failed(result: Message) -> bool:
    """Whether a tool's answer says that the call failed: an error key, a false `ok`, a status, a return code, or an error text."""
    if result.extra.get("is_error") is True:
        return True
    text = result.text.strip()
    if text.startswith("{"):
        try:
            return _failed_object(json.loads(text))
        except ValueError:
            pass  # no JSON after all: judged as text
    return text.casefold().startswith(_ERROR_TEXT)


def read_only(tools: Sequence[Mapping[str, Any]], configured: Sequence[str] = ()) -> frozenset[str]:
    """Names of the tools that change nothing: by `readOnlyHint` in the definition or its `annotations`, or by configuration."""
    names = set(configured)
    for tool in tools:
        function = tool.get("function", tool)
        if isinstance(function, Mapping) and any(_hint(x) for x in (tool, function)):
            names.add(str(function.get("name", "")))
    return frozenset(names)


def _hint(definition: Mapping[str, Any]) -> bool:
    annotations = definition.get("annotations")
    return definition.get("readOnlyHint") is True or (isinstance(annotations, Mapping) and annotations.get("readOnlyHint") is True)


def _failed_object(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    if value.get("error") or value.get("ok") is False or value.get("success") is False or value.get("isError") is True:
        return True
    codes = [value[k] for k in ("returncode", "return_code", "exit_code") if k in value]
    return value.get("status") == "error" or any(isinstance(c, int) and c != 0 for c in codes)


def _of_step(index: int, step: DraftStep) -> Iterator[Call]:
    answers = {m.tool_call_id: m for m in step.observation if m.role == "tool" and m.tool_call_id}
    unnamed = [m for m in step.observation if m.role == "tool" and not m.tool_call_id]
    for place, call in enumerate(step.action.tool_calls):
        # Sources without call ids answer in the order of the calls.
        result = answers.get(call.id) or (unnamed[place] if place < len(unnamed) and not answers else None)
        bad = (result is not None and failed(result)) or (step.error is not None and len(step.action.tool_calls) == 1)
        yield Call(index, place, call, result, bad)
