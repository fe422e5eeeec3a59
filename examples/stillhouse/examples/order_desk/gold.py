"""The shortest right way through a task, by its wanted effects: proof that it is solvable, a yardstick for lengths, shots for a base model.

No policy uses this; the stand-in teacher knows only what the customer wrote and what the tools said.
"""

import json
from typing import Any

from stillhouse.examples.order_desk.environment import Desk
from stillhouse.examples.order_desk.tasks import DeskTask
from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.messages import Message, ToolCall

_REPLIES = {
    "cancel": "Order {id} is cancelled.",
    "address": "Order {id} will go to the new address.",
    "refund": "Order {id} is refunded.",
    "cancel_shipped": "Order {id} already shipped, so I opened a return.",
    "replace": "A new item for order {id} is on its way.",
    "address_shipped": "Order {id} already shipped, the courier team will call you.",
    "combo": "Both changes are done.",
}
_LOST = {"refund": "Order {id} was lost, so I refunded it.", "escalate": "Order {id} is on a van, the courier team will call you."}


def gold_calls(task: DeskTask) -> list[tuple[str, dict[str, Any]]]:
    """The calls of the shortest right way: the look-ups that the wanted acts depend on, then the acts."""
    calls: list[tuple[str, dict[str, Any]]] = [("find_orders", {"email": task.email})]
    if task.family == "lost":
        calls.append(("track", {"id": task.want[0].order_id}))
    for effect in task.want:
        arguments: dict[str, Any] = {"id": effect.order_id}
        if effect.tool == "refund":
            calls.append(("get_payment", dict(arguments)))
            arguments["amount"] = int(effect.detail)
        elif effect.tool == "set_address":
            arguments["address"] = effect.detail
        calls.append((effect.tool, arguments))
    return calls


def gold_reply(task: DeskTask) -> str:
    """What the customer is told at the end of the shortest right way."""
    template = _LOST[task.want[0].tool] if task.family == "lost" else _REPLIES[task.family]
    return template.format(id=task.want[0].order_id)


def clean_trajectory(task: DeskTask) -> tuple[Message, ...]:
    """The conversation of the shortest right way, from the customer's message to the reply, played on a real desk.

    Raises:
        PermanentError: the desk does not verify it: the task is not solvable as it stands.
    """
    desk = Desk(task)
    messages = [Message(role="user", content=task.instruction)]
    for number, (name, arguments) in enumerate(gold_calls(task)):
        call = ToolCall(id=f"call_{number}", name=name, arguments=arguments)
        messages.append(Message(role="assistant", tool_calls=(call,)))
        messages.append(Message(role="tool", tool_call_id=call.id, content=json.dumps(desk.call(name, arguments))))
    messages.append(Message(role="assistant", content=gold_reply(task)))
    verdict = desk.verify(replied=True)
    if not verdict.success:
        raise PermanentError(f"the task is not solvable: {verdict.reason}", where=task.id, fix="Make the task anew.")
    return tuple(messages)
