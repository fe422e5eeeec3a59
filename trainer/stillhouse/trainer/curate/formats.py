"""Actions that agents write as text: ReAct, XML tags, fenced shell commands, JSON in prose. Each reader is lossless or refuses.

A reader returns None when the text is not of its format, a `Written` when it is, and a `Refused` when it is but cannot be read
without losing something.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Written(NamedTuple):
    """An action read from text: a call, or (`name` empty) a final answer in `content`."""

    name: str
    arguments: dict[str, Any]
    reasoning: str | None
    content: str | None


class Refused(NamedTuple):
    """Why a text cannot be read; the name of a reason in the waterfall."""

    reason: str


Reading = Written | Refused | None

_REACT = re.compile(r"^[ \t]*(Thought|Action|Action Input|Observation|Final Answer)(?: \d+)?:[ \t]*", re.MULTILINE)
_BRACKETS = re.compile(r"([A-Za-z_][\w.-]*)[ \t]*\[(.*)\]\s*", re.DOTALL)
_FENCE = re.compile(r"^```[ \t]*(\w*)[ \t]*\n(.*?)\n?^```[ \t]*$", re.DOTALL | re.MULTILINE)
_TAGGED = re.compile(r"<(tool_call|function_call|tool_use)>\s*(.*?)\s*</\1>", re.DOTALL)
_FUNCTION = re.compile(r"<(?:function=|invoke name=\"|tool name=\")([\w.-]+)\"?>\s*(.*?)\s*</(?:function|invoke|tool)>", re.DOTALL)
_PARAMETER = re.compile(r"<parameter(?:=| name=\")([\w.-]+)\"?>\n?(.*?)\n?</parameter>", re.DOTALL)
_SHELLS = ("bash", "sh", "shell", "execute_bash", "run_bash", "terminal")
_FENCE_NAMES = ("bash", "sh", "shell", "console")
_NAME_KEYS, _ARGUMENT_KEYS = ("name", "tool", "action", "function"), ("arguments", "args", "parameters", "action_input", "input")
_FINISH = ("finish", "final", "answer")


def react(text: str, tools: Mapping[str, Mapping[str, Any]]) -> Reading:
    """`Thought: … Action: name[argument]`, or `Action: name` with `Action Input: {…}`, or `Final Answer: …`."""
    marks = list(_REACT.finditer(text))
    labels = [m.group(1) for m in marks]
    if not {"Action", "Final Answer"} & set(labels):
        return None
    if "Observation" in labels:
        return Refused("wrote_its_observation")
    if len(set(labels)) < len(labels):
        return Refused("several_actions")
    ends = [*(m.start() for m in marks[1:]), len(text)]
    parts = {m.group(1): text[m.end() : end].strip() for m, end in zip(marks, ends, strict=True)}
    said = [s for s in (text[: marks[0].start()].strip(), parts.get("Thought", "")) if s]
    reasoning = "\n".join(said) or None
    if "Final Answer" in parts:
        return Refused("several_actions") if "Action" in parts else Written("", {}, reasoning, parts["Final Answer"])
    return _react_action(parts["Action"], parts.get("Action Input"), reasoning, tools)


def xml(text: str, tools: Mapping[str, Mapping[str, Any]]) -> Reading:
    """`<tool_call>{json}</tool_call>`, or `<function=name><parameter=key>value</parameter></function>` and its cousins."""
    found = [*_TAGGED.finditer(text), *_FUNCTION.finditer(text)]
    if not found:
        return None
    if len(found) > 1 and not (len(found) == 2 and found[1].start() >= found[0].start() and found[1].end() <= found[0].end()):
        return Refused("several_actions")
    outer, inner = found[0], found[-1]
    around = _around(text, outer.start(), outer.end())
    if isinstance(around, Refused):
        return around
    if inner.re is _FUNCTION:
        return _parameters(inner.group(1), inner.group(2), around)
    call = _call_object(_json(inner.group(2)))
    return Written(*call, None, around) if call else Refused("bad_json")


def fenced(text: str, tools: Mapping[str, Mapping[str, Any]]) -> Reading:
    """One fenced shell command, as a call of the shell tool (`bash` where none is declared)."""
    blocks = [m for m in _FENCE.finditer(text) if m.group(1).lower() in _FENCE_NAMES]
    shell = next((n for n in _SHELLS if n in tools), None if tools else "bash")
    if not blocks or shell is None:
        return None
    if len(blocks) > 1:
        return Refused("several_actions")
    around = _around(text, blocks[0].start(), blocks[0].end())
    if isinstance(around, Refused):
        return around
    return Written(shell, {_only_parameter(tools.get(shell), "command"): blocks[0].group(2)}, None, around)


def json_in_prose(text: str, tools: Mapping[str, Mapping[str, Any]]) -> Reading:
    """One JSON object that names a declared tool and its arguments, bare, fenced, or after some prose."""
    for start in (m.start() for m in re.finditer(r"\{", text)):
        try:
            value, length = json.JSONDecoder().raw_decode(text[start:])
        except ValueError:
            continue
        call = _call_object(value)
        if call is None or (tools and call[0] not in tools):
            continue
        before, after = text[:start], text[start + length :]
        if re.search(r"```(?:json)?\s*$", before) and after.lstrip().startswith("```"):
            before, after = re.sub(r"```(?:json)?\s*$", "", before), after.lstrip()[3:]
        return Refused("text_after_action") if after.strip() else Written(*call, None, before.strip() or None)
    return None


READERS: tuple[Callable[[str, Mapping[str, Mapping[str, Any]]], Reading], ...] = (react, xml, fenced, json_in_prose)


def _react_action(action: str, given: str | None, reasoning: str | None, tools: Mapping[str, Mapping[str, Any]]) -> Reading:
    brackets = _BRACKETS.fullmatch(action)
    if given is None and brackets is None:
        return Refused("bad_action")
    name, argument = (action, given) if given is not None else (brackets.group(1), brackets.group(2)) if brackets else ("", "")
    if name.lower() in _FINISH and name not in tools:
        return Written("", {}, reasoning, argument or "")
    if not re.fullmatch(r"[A-Za-z_][\w.-]*", name):
        return Refused("bad_action")
    value = _json(argument or "")
    if isinstance(value, dict):
        return Written(name, value, reasoning, None)
    if (argument or "").lstrip().startswith("{"):
        return Refused("bad_json")
    return Written(name, {_only_parameter(tools.get(name), "input"): argument or ""}, reasoning, None)


def _parameters(name: str, body: str, around: str | None) -> Reading:
    if _PARAMETER.sub("", body).strip():
        return Refused("bad_parameters")
    found = _PARAMETER.findall(body)
    if len({key for key, _ in found}) < len(found):
        return Refused("bad_parameters")
    return Written(name, dict(found), None, around)


def _around(text: str, start: int, end: int) -> str | Refused | None:
    """What was said before the action; anything after it would be said before its result is known."""
    return Refused("text_after_action") if text[end:].strip() else text[:start].strip() or None


def _call_object(value: Any) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments, when an object has these two and nothing else."""
    if not isinstance(value, dict) or len(value) != 2:
        return None
    names = [k for k in _NAME_KEYS if isinstance(value.get(k), str)]
    arguments = [k for k in _ARGUMENT_KEYS if isinstance(value.get(k), dict)]
    return (value[names[0]], value[arguments[0]]) if names and arguments else None


def _only_parameter(tool: Mapping[str, Any] | None, default: str) -> str:
    """The name of a tool's only (or only required) parameter, for formats that write its value alone."""
    parameters = (tool or {}).get("parameters") or {}
    required = parameters.get("required") or list(parameters.get("properties") or {})
    return str(required[0]) if len(required) == 1 else default


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
