"""Actions written as text become canonical, or are refused with a reason."""

from typing import Any

import pytest

from stillhouse.schemas.messages import Message, ToolCall
from stillhouse.schemas.trajectory import Step
from stillhouse.trainer.curate.draft import Draft
from stillhouse.trainer.curate.standardise import standardise
from tests.trainer.curation_factory import STUDENT, TEACHER, call, drafted, reply, run, tool

SHELL = (tool("bash", "command"),)
SEARCH = (tool("search", "query"), tool("book", "flight", "seat"))


def standard(*steps: Step, tools: tuple[dict[str, Any], ...] = SEARCH) -> Draft | str:
    result = standardise([drafted(run(*steps, tools=tools))])
    return result.kept[0] if result.kept else next(iter(result.dropped))


def first(*steps: Step, tools: tuple[dict[str, Any], ...] = SEARCH) -> Message:
    got = standard(*steps, tools=tools)
    assert isinstance(got, Draft)
    return got.steps[0].action


@pytest.mark.parametrize(
    ("text", "name", "arguments", "reasoning", "content"),
    [
        ("Thought: look it up\nAction: search[milan to rome]", "search", {"query": "milan to rome"}, "look it up", None),
        ('Thought 1: go\nAction 1: book\nAction Input 1: {"flight": "A1", "seat": 3}', "book", {"flight": "A1", "seat": 3}, "go", None),
        ('Look.\n<tool_call>\n{"name": "search", "arguments": {"query": "x"}}\n</tool_call>', "search", {"query": "x"}, None, "Look."),
        ("<function=search><parameter=query>x y</parameter></function>", "search", {"query": "x y"}, None, None),
        ('<invoke name="search"><parameter name="query">x</parameter></invoke>', "search", {"query": "x"}, None, None),
        ('Let me see. {"name": "search", "arguments": {"query": "x"}}', "search", {"query": "x"}, None, "Let me see."),
        ('```json\n{"tool": "search", "args": {"query": "x"}}\n```', "search", {"query": "x"}, None, None),
    ],
)  # fmt: skip
def test_a_call_in_a_text(text: str, name: str, arguments: dict[str, Any], reasoning: str | None, content: str | None) -> None:
    action = first(reply(text, answer="Observation: found it"), reply("Here you are."))
    assert [(c.name, c.arguments) for c in action.tool_calls] == [(name, arguments)]
    assert (action.reasoning, action.content) == (reasoning, content)


def test_the_answer_of_a_text_environment_becomes_the_result_of_the_call() -> None:
    got = standard(reply("Action: search[x]", answer="Observation: found it"), reply("Here."))
    assert isinstance(got, Draft)
    (result,) = got.steps[0].observation
    assert (result.role, result.content, result.tool_call_id) == ("tool", "found it", got.steps[0].action.tool_calls[0].id)


def test_a_fenced_command_is_a_call_of_the_shell() -> None:
    action = first(reply("List them.\n```bash\nls -l\ncat a\n```", answer="a b"), reply("Done."), tools=SHELL)
    assert [(c.name, c.arguments) for c in action.tool_calls] == [("bash", {"command": "ls -l\ncat a"})]
    assert action.content == "List them."


def test_code_that_a_reply_shows_stays_a_reply() -> None:
    shown = "Run this:\n```bash\nls\n```"
    assert first(reply(shown), tools=()).content == shown
    assert first(reply(shown, answer="thanks"), call("search", "x", query="y"), tools=SEARCH).content == shown


def test_a_final_answer_is_a_reply() -> None:
    action = first(reply("Thought: I know\nFinal Answer: 42"))
    assert (action.content, action.reasoning, action.tool_calls) == ("42", "I know", ())
    assert first(reply("Action: Finish[42]")).content == "42"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Action: search[x]\nObservation: I made this up", "wrote_its_observation"),
        ("Action: search[x]\nAction: search[y]", "several_actions"),
        ("Action: dig[x]", "unknown_tool"),
        ("Action: go and look", "bad_action"),
        ('Action: book\nAction Input: {"flight": ', "bad_json"),
        ("<tool_call>{nonsense}</tool_call>", "bad_json"),
        ('<tool_call>{"name": "search", "arguments": {}}</tool_call> and then?', "text_after_action"),
        ("<function=search>stray<parameter=query>x</parameter></function>", "bad_parameters"),
        ("  ", "empty_action"),
    ],
)
def test_what_cannot_be_read_without_loss_is_refused(text: str, reason: str) -> None:
    assert standard(reply(text, answer="ok"), reply("Done.")) == reason


def test_calls_on_the_wire_must_have_had_an_object_and_a_known_tool() -> None:
    assert standard(call("dig", "x", q="y")) == "unknown_tool"
    broken = Message(role="assistant", tool_calls=(ToolCall(id="c", name="search", raw_arguments="{"),))
    step = Step(index=0, action=broken, policy=TEACHER, event_id="", occurred_at=0)
    assert standard(step) == "bad_arguments"


def test_a_call_in_a_text_beside_real_calls_never_ran() -> None:
    leaked = reply('{"name": "search", "arguments": {"query": "x"}}', answer="what is that?")
    assert standard(call("search", "x", query="y"), leaked, reply("Sorry.")) == "call_as_text"


def test_a_students_malformed_step_is_context_and_stays_as_it_was() -> None:
    got = standard(reply("Action: go and look", policy=STUDENT, answer="?"), call("search", "x", query="y"), reply("Done."))
    assert isinstance(got, Draft) and got.steps[0].action.content == "Action: go and look"


def test_a_reply_with_json_that_is_no_call_is_a_reply() -> None:
    text = 'Your order: {"id": 5, "items": {"lamp": 1}}'
    assert first(reply(text)).content == text
