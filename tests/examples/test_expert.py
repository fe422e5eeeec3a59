"""The stand-in teacher: right on most tasks, wrong in honest ways, wordy and roundabout, and always the same."""

import copy
import json
import random
import re
from collections import Counter
from typing import Any

import pytest

from stillhouse.examples.order_desk.environment import Desk
from stillhouse.examples.order_desk.expert import answer
from stillhouse.examples.order_desk.gold import gold_calls
from stillhouse.examples.order_desk.reading import read_request
from stillhouse.examples.order_desk.tasks import FAMILIES, PARTS, DeskTask, Part, make_tasks
from stillhouse.examples.order_desk.tools import READ_ONLY, SYSTEM_PROMPT, TOOLS
from stillhouse.schemas.errors import UsageError
from tests.examples.playing import Played, play

TRAIN = [play(task) for task in make_tasks("train", 800, seed=1)]
WON = [played for played in TRAIN if played.verdict.success]


def start(task: DeskTask) -> list[dict[str, Any]]:
    return [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": task.instruction}]


@pytest.mark.parametrize("part", PARTS)
def test_it_is_right_on_92_to_96_tasks_of_a_hundred(part: Part) -> None:
    played = TRAIN if part == "train" else [play(task) for task in make_tasks(part, 800, seed=1)]
    assert 0.92 <= sum(p.verdict.success for p in played) / len(played) <= 0.96


def test_it_fails_in_every_family_and_in_different_ways() -> None:
    lost = [p for p in TRAIN if not p.verdict.success]
    assert {p.task.family for p in lost} == set(FAMILIES)
    ways = Counter(
        "forgot the second half"
        if p.task.family == "combo" and "done: cancel" in p.verdict.reason and p.task.want[0].order_id in p.verdict.reason
        else "did the other thing"
        if {name for name, _, _ in p.calls} & {"refund", "replace"} and f"done: {other(p)} {p.task.want[0].order_id}" in p.verdict.reason
        else "wrong order"
        if "; done:" in p.verdict.reason
        else "stopped early"
        for p in lost
    )
    assert len(ways) == 4 and min(ways.values()) >= 2, ways


def other(played: Played) -> str:
    return {"refund": "replace", "replace": "refund"}.get(played.task.family, "-")


def test_detours_are_as_frequent_as_said() -> None:
    corrected = [p for p in WON if any("error" in r and p.calls[i + 1][0] == name for i, (name, _, r) in enumerate(p.calls[:-1]))]
    needless = [p for p in WON if {n for n, _, _ in p.calls} & READ_ONLY - {n for n, _ in gold_calls(p.task)}]
    repeated = [p for p in WON if len({json.dumps(c[:2]) for c in p.calls}) < len(p.calls)]
    assert 0.2 <= len(corrected) / len(WON) <= 0.35
    assert 0.2 <= len(needless) / len(WON) <= 0.4
    assert 0 < len(repeated) / len(WON) <= 0.08


def test_what_can_be_pruned_from_a_success_leaves_the_gold_calls() -> None:
    """Corrected retries, exact repeats and look-ups that nobody used are all that a success holds besides, but for the dead ends."""
    roundabout = 0
    for played in WON:
        kept: list[tuple[str, dict[str, Any]]] = []
        for name, arguments, result in played.calls:
            needless = name in READ_ONLY and name not in {n for n, _ in gold_calls(played.task)}
            if "error" not in result and not needless and (name, arguments) not in kept:
                kept.append((name, arguments))
        assert sorted(kept, key=str) == sorted(gold_calls(played.task), key=str)
        dead_ends = [
            (i, n) for i, (n, _, r) in enumerate(played.calls) if "error" in r and n not in [later for later, _, _ in played.calls[i + 1 :]]
        ]
        roundabout += bool(dead_ends)
    assert 0 < roundabout / len(WON) < 0.03


def test_a_needless_look_up_shows_nothing_that_is_used_later() -> None:
    """So that curation can prove that nobody used it. A house number that equals a price may come once in a while."""
    used = 0
    for played in WON:
        for i, message in enumerate(played.messages):
            call = (message.get("tool_calls") or [{"function": {"name": ""}}])[0]["function"]["name"]
            if call in READ_ONLY and call not in {n for n, _ in gold_calls(played.task)}:
                (shown,) = json.loads(played.messages[i + 1]["content"]).values()
                later = (m for m in played.messages[i + 2 :] if m["role"] == "assistant")
                said = " ".join(
                    f"{m['reasoning_content']} {m['content']} {[c['function'] for c in m.get('tool_calls', ())]}" for m in later
                )
                used += re.search(rf"\b{shown}\b", said) is not None
    assert used <= 3


def test_it_thinks_a_hundred_to_three_hundred_tokens_at_every_step() -> None:
    lengths = [len(m["reasoning_content"].split()) for p in TRAIN for m in p.messages if m["role"] == "assistant"]
    assert min(lengths) * 1.2 >= 80 and max(lengths) * 1.4 <= 300  # English has 1.2 to 1.4 tokens a word


def test_one_request_has_one_answer_and_leaves_the_request_alone() -> None:
    rng = random.Random(5)
    for played in TRAIN[:60]:
        for i, message in enumerate(played.messages):
            if message["role"] == "assistant":
                before = played.messages[:i]
                kept = copy.deepcopy(before)
                shuffled = [dict(reversed(t.items())) for t in rng.sample(TOOLS, len(TOOLS))]
                assert answer(before, shuffled) == message
                assert before == kept


def test_worked_examples_before_the_case_change_nothing() -> None:
    shots = TRAIN[3].messages[1:]
    for played in TRAIN[10:20]:
        head, case = played.messages[:1], played.messages[1:2]
        assert answer([*head, *shots, *case], list(TOOLS)) == answer([*head, *case], list(TOOLS))


def test_unknown_tools_are_left_alone_and_a_missing_one_is_said() -> None:
    task = make_tasks("train", 1, seed=1, families=["cancel"])[0]
    more = [{"type": "function", "function": {"name": "send_flowers", "parameters": {}}}, *TOOLS]
    assert answer(start(task), more) == answer(start(task), list(TOOLS))
    assert answer(start(task), more[:1])["content"] == "I am sorry, I have no tool for that."
    assert answer(start(task))["content"] == "I am sorry, I have no tool for that."


@pytest.mark.parametrize("part", ["train", "rephrased"])
def test_every_wording_is_understood(part: Part) -> None:
    for task in make_tasks(part, 800, seed=2):
        request = read_request(task.instruction)
        assert request.email == task.email
        assert request.intent == task.family.removesuffix("_shipped")


def test_it_helps_on_from_wherever_a_student_got_stuck() -> None:
    """After a student's wrong look-ups and failed calls the teacher finds the way on nearly all tasks it solves alone."""
    solved = 0
    for alone in WON[:100]:
        task, desk, messages = alone.task, Desk(alone.task), start(alone.task)
        stuck = [
            ("find_orders", {"email": "nobody@mail.com"}),
            ("refund", {"id": "1"}),
            ("track", {"id": task.orders[0].id}),
            ("cancel", {}),
        ]
        for number, (name, arguments) in enumerate(stuck):
            function = {"name": name, "arguments": json.dumps(arguments)}
            messages.append(
                {"role": "assistant", "content": None, "tool_calls": [{"id": f"s{number}", "type": "function", "function": function}]}
            )
            messages.append({"role": "tool", "tool_call_id": f"s{number}", "content": json.dumps(desk.call(name, arguments))})
        solved += play(task, messages, desk).verdict.success
    assert solved >= 98


def test_content_in_parts_is_read_as_text() -> None:
    task = TRAIN[0].task
    parts = [{"role": "user", "content": [{"type": "text", "text": task.instruction}]}]
    assert answer(parts, list(TOOLS)) == answer([{"role": "user", "content": task.instruction}], list(TOOLS))


def test_a_customer_who_says_nothing_useful_gets_a_reply() -> None:
    tools = list(TOOLS)
    assert "e-mail" in answer([{"role": "user", "content": "My lamp is broken"}], tools)["content"]
    seen = {"role": "tool", "tool_call_id": "a", "content": '{"orders": ["red mug: shipped, id 4000"]}'}
    call = {"id": "a", "type": "function", "function": {"name": "find_orders", "arguments": '{"email": "a@b.com"}'}}
    asked = [{"role": "user", "content": "a@b.com cancel my sofa"}, {"role": "assistant", "content": None, "tool_calls": [call]}, seen]
    assert "do not understand" in answer(asked, tools)["content"]


@pytest.mark.parametrize(
    ("messages", "tools"),
    [
        (None, ()), ("hello", ()), ([], ()), ([1], ()), ([{"role": "system", "content": "x"}], ()),
        ([{"role": "user", "content": "x"}], "tools"), ([{"role": "user", "content": "x"}], [{"type": "function"}]),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": ["x"]}], ()),
    ],
)  # fmt: skip
def test_garbage_is_refused_with_the_place(messages: object, tools: object) -> None:
    with pytest.raises(UsageError) as refused:
        answer(messages, tools)
    assert refused.value.where in ("messages", "tools")
