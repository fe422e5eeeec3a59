"""The stand-in teacher: a scripted expert that is a pure function of a chat request's `messages` and `tools`.

It knows nothing of tasks, entities or the environment; it reads the customer's words and the tools' answers as a model would.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from stillhouse.examples.order_desk import prose
from stillhouse.examples.order_desk.habits import Mistake, detour
from stillhouse.examples.order_desk.reading import Call, Conversation, read_conversation
from stillhouse.examples.order_desk.rules import Reply, Step, first_look, goals, next_step
from stillhouse.schemas.errors import UsageError


def answer(messages: object, tools: object = ()) -> dict[str, Any]:
    """The assistant message that follows `messages`: one tool call of `tools`, or a reply; with `reasoning_content`.

    Args:
        messages: OpenAI chat messages; the current case starts at the last user message.
        tools: OpenAI tool definitions, in any order; unknown ones are left alone, and a missing one is apologised for.

    Raises:
        UsageError: messages or tools are not what the OpenAI API defines.
    """
    case, offered = read_conversation(messages), _names(tools)
    step = _decide(case, offered)
    if isinstance(step, Call) and step.name not in offered:
        step = Reply("I am sorry, I have no tool for that.")
    return _message(step, case)


def _decide(case: Conversation, offered: frozenset[str]) -> Step:
    look = first_look(case)
    if look is not None:
        return detour(look, case, offered)
    mistake = Mistake.of(case)
    wanted = mistake.bend(goals(case), case)
    step = mistake.stop(next_step(wanted, case), wanted, case)
    return detour(step, case, offered)


def _names(tools: object) -> frozenset[str]:
    if tools is None:
        return frozenset()
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        raise UsageError("tools must be a list", where="tools", fix="Send OpenAI tool definitions.")
    functions = [tool.get("function") if isinstance(tool, Mapping) else None for tool in tools]
    if not all(isinstance(f, Mapping) and isinstance(f.get("name"), str) for f in functions):
        raise UsageError("every tool needs a function with a name", where="tools", fix="Send OpenAI tool definitions.")
    return frozenset(f["name"] for f in functions if isinstance(f, Mapping))


def _message(step: Step, case: Conversation) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": None, "reasoning_content": prose.think(step, case)}
    if isinstance(step, Reply):
        return message | {"content": step.text}
    call_id = hashlib.sha256(f"{len(case.history)}\0{case.request.text}".encode()).hexdigest()[:16]
    function = {"name": step.name, "arguments": json.dumps(step.arguments)}
    return message | {"tool_calls": [{"id": f"call_{call_id}", "type": "function", "function": function}]}
