"""ReAct text (`Thought: … Action: name[argument]`) as canonical messages, or unchanged where it is not quite that."""

import re

from stillhouse.schemas.messages import Message, ToolCall

_STEP = re.compile(r"(?:Thought:\s*(?P<thought>.*?)\n)?Action:\s*(?P<name>\w+)\[(?P<argument>.*)\]\s*", re.DOTALL)
_OBSERVATION = "Observation:"
_LINE = re.compile(r"^(?=(?:Thought|Action|Observation):)", re.MULTILINE)


def action_from_text(text: str, call_id: str) -> Message:
    """The assistant's text as a tool call with its thought as reasoning; as plain content when there is no whole action in it.

    The argument becomes `{"input": …}`: ReAct names tools, not parameters.
    """
    found = _STEP.fullmatch(text)
    if not found or "\nAction:" in found["argument"]:
        return Message(role="assistant", content=text)
    call = ToolCall(id=call_id, name=found["name"], arguments={"input": found["argument"]})
    return Message(role="assistant", content=None, reasoning=found["thought"], tool_calls=(call,))


def observation_from_text(text: str, action: Message | None) -> Message:
    """The answer to an action: a tool message when it says `Observation:` and there is a call that it answers."""
    if text.startswith(_OBSERVATION) and action and action.tool_calls:
        return Message(role="tool", content=text.removeprefix(_OBSERVATION).removeprefix(" "), tool_call_id=action.tool_calls[-1].id)
    return Message(role="user", content=text)


def split(text: str) -> tuple[str, list[tuple[str, str]]]:
    """Cut one long ReAct text.

    Returns:
        What stands before the first marker, and (`assistant` | `user`, text) in order; thought and action of a step stay together.
    """
    head, *rest = _LINE.split(text)
    pieces: list[tuple[str, str]] = []
    for segment in rest:
        role = "user" if segment.startswith(_OBSERVATION) else "assistant"
        if segment.startswith("Action:") and pieces and pieces[-1][0] == "assistant" and "\nAction:" not in pieces[-1][1]:
            pieces[-1] = ("assistant", pieces[-1][1] + segment)
        else:
            pieces.append((role, segment))
    return head, [(role, segment.rstrip("\n")) for role, segment in pieces]
