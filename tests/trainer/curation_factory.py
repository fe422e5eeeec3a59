"""Trajectories made by hand, for the tests of curation and windows."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from stillhouse.schemas.events import Outcome, Policy, PolicyRole, Task, Usage
from stillhouse.schemas.messages import Message, ToolCall
from stillhouse.schemas.trajectory import Status, Step, Trajectory
from stillhouse.trainer.curate.counting import Counted
from stillhouse.trainer.curate.draft import Draft, DraftStep, draft_of
from stillhouse.trainer.curate.source import source
from stillhouse.trainer.examples import Side
from stillhouse.trainer.settings import CurationSettings

TEACHER = Policy(role=PolicyRole.TEACHER, model="big")
STUDENT = Policy(role=PolicyRole.STUDENT, model="small")
READS = ("find", "look")


def tool(name: str, *parameters: str, read_only: bool = False) -> dict[str, Any]:
    function: dict[str, Any] = {"name": name, "parameters": {"type": "object", "properties": {p: {"type": "string"} for p in parameters}}}
    if read_only:
        function["annotations"] = {"readOnlyHint": True}
    return {"type": "function", "function": function}


TOOLS = (tool("find", "email", read_only=True), tool("look", "id", read_only=True), tool("cancel", "id"), tool("refund", "id", "amount"))


def call(name: str, result: Any = None, *, policy: Policy = TEACHER, reasoning: str | None = None, **arguments: Any) -> Step:
    """A step with one call and its result (an object, or a text)."""
    text = result if isinstance(result, str) else json.dumps(result)
    observation = () if result is None else (Message(role="tool", content=text, tool_call_id="c"),)
    action = Message(role="assistant", reasoning=reasoning, tool_calls=(ToolCall(id="c", name=name, arguments=arguments),))
    return Step(index=0, action=action, policy=policy, event_id="", occurred_at=0, observation=observation, usage=Usage(output_tokens=9))


def reply(text: str, *, policy: Policy = TEACHER, answer: str | None = None, **extra: Any) -> Step:
    """A step that says something; `answer` is the person's next message."""
    observation = () if answer is None else (Message(role="user", content=answer),)
    action = Message(role="assistant", content=text, extra=extra)
    return Step(index=0, action=action, policy=policy, event_id="", occurred_at=0, observation=observation, usage=Usage(output_tokens=5))


def run(
    *steps: Step,
    name: str = "r",
    ask: str = "Cancel order 41, mail ann@web.io",
    task: str | None = "t",
    family: str | None = "cancel",
    outcome: Outcome = Outcome.SUCCESS,
    tools: Sequence[dict[str, Any]] = TOOLS,
    at: int = 0,
    **more: Any,
) -> Trajectory:
    """A trajectory of these steps, its instruction as the first user message."""
    numbered = []
    for i, step in enumerate(steps):
        state = (Message(role="user", content=ask), *step.state) if i == 0 else step.state
        numbered.append(msgspec.structs.replace(step, index=i, event_id=f"{name}{i}", occurred_at=at + i, state=state))
    fields = {
        "tenant": "shop",
        "status": Status.ENDED,
        "system_prompt": "Desk.",
        "revision": len(steps) + 2,
        "content": f"hash-{name}",
        **more,
    }
    return Trajectory(
        key=f"{fields['tenant']}/{name}",
        trajectory_id=name,
        task=Task(id=task, family=family, instruction=ask),
        tools=tuple(tools),
        steps=tuple(numbered),
        policies=tuple({s.policy: None for s in steps}),
        outcome=outcome,
        first_occurred_at=at,
        last_occurred_at=at + len(steps),
        **fields,
    )


def drafted(trajectory: Trajectory, settings: CurationSettings | None = None, **more: Any) -> Draft:
    """A draft on the training side with its teacher's steps marked."""
    fields = {"task_key": trajectory.task.id or "", "leader": trajectory.task.id or "", "side": Side.TRAIN, **more}
    kept = source([draft_of(trajectory, **fields)], settings or CurationSettings()).kept
    return kept[0]


def actions(draft: Draft) -> list[str]:
    """What a draft does, in short: tool names, and `reply`."""
    return [short(s) for s in draft.steps]


def short(step: DraftStep) -> str:
    return "+".join(c.name for c in step.action.tool_calls) or "reply"


class WordCounter:
    """A student's view that counts words."""

    def __init__(self, limit: int = 10_000, shows_reasoning: bool = False) -> None:
        self.limit, self.shows_reasoning, self.identity = limit, shows_reasoning, f"words-{limit}"

    def count(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], supervised: Sequence[bool]) -> Counted:
        sizes = [self.words(f"{m.text} {' '.join(json.dumps(c.arguments) for c in m.tool_calls)}") + 1 for m in messages]
        return Counted(sum(sizes), sum(n for n, s in zip(sizes, supervised, strict=True) if s))

    def words(self, text: str) -> int:
        return len(text.split())

    def unwritable(self, message: Message) -> str | None:
        return "cannot be written" if message.text.startswith("{") else None
