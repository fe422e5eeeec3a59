"""The teacher's answers played on a desk without HTTP: fast enough for rates over hundreds of tasks."""

import json
from dataclasses import dataclass
from typing import Any

from stillhouse.examples.order_desk.environment import Desk, Verdict
from stillhouse.examples.order_desk.expert import answer
from stillhouse.examples.order_desk.tasks import DeskTask
from stillhouse.examples.order_desk.tools import SYSTEM_PROMPT, TOOLS

TURNS = 14


@dataclass
class Played:
    """One run: the chat, each call with its result, and the verdict."""

    task: DeskTask
    messages: list[dict[str, Any]]
    calls: list[tuple[str, dict[str, Any], dict[str, Any]]]
    verdict: Verdict

    @property
    def errors(self) -> int:
        return sum("error" in result for _, _, result in self.calls)


def play(task: DeskTask, before: list[dict[str, Any]] | None = None, desk: Desk | None = None) -> Played:
    """The teacher on a task, from the customer's message or from a conversation that went on before."""
    desk = desk or Desk(task)
    messages = before or [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": task.instruction}]
    calls: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
    for _ in range(TURNS):
        message = answer(messages, list(TOOLS))
        messages.append(message)
        if not message.get("tool_calls"):
            return Played(task, messages, calls, desk.verify(replied=bool(message["content"])))
        (call,) = message["tool_calls"]
        name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
        result = desk.call(name, arguments)
        calls.append((name, arguments, result))
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": json.dumps(result)})
    return Played(task, messages, calls, desk.verify(replied=False))
