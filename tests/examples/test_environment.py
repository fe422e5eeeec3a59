"""The desk: every call answered, every wrong outcome caught, every state resumable."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.examples.order_desk.environment import Desk
from stillhouse.examples.order_desk.gold import gold_calls
from stillhouse.examples.order_desk.tasks import FAMILIES, DeskTask, Effect, make_tasks
from stillhouse.examples.order_desk.tools import READ_ONLY, TOOLS
from stillhouse.schemas.errors import PermanentError

TASKS = make_tasks("train", 96, seed=11)
ACTS = sorted({t["function"]["name"] for t in TOOLS} - READ_ONLY)
Calls = list[tuple[str, dict[str, Any]]]


def acts(task: DeskTask) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """Any act on any of the task's orders, with an amount or address that may be right."""
    ids = st.sampled_from([o.id for o in task.orders])
    amounts = st.sampled_from([o.total for o in task.orders] + [1])
    addresses = st.sampled_from([e.detail for e in task.want if e.tool == "set_address"] + ["1 Oak Street, York"])
    return st.one_of(
        st.tuples(st.sampled_from([a for a in ACTS if a not in ("refund", "set_address")]), st.fixed_dictionaries({"id": ids})),
        st.tuples(st.just("refund"), st.fixed_dictionaries({"id": ids, "amount": amounts})),
        st.tuples(st.just("set_address"), st.fixed_dictionaries({"id": ids, "address": addresses})),
    )


def effects(desk: Desk, calls: Calls) -> list[Effect]:
    """Play calls and write down, apart from the desk's own books, what it agreed to."""
    done = []
    for name, arguments in calls:
        if desk.call(name, arguments) == {"ok": True}:
            done.append(Effect(tool=name, order_id=arguments["id"], detail=str(arguments.get("amount", arguments.get("address", "")))))
    return sorted(done)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_run_succeeds_exactly_when_its_effects_are_the_wanted_ones(data: st.DataObject) -> None:
    task = data.draw(st.sampled_from(TASKS))
    right: Calls = [call for call in gold_calls(task) if call[0] not in READ_ONLY]
    calls = data.draw(st.permutations([*right[data.draw(st.integers(0, len(right))) :], *data.draw(st.lists(acts(task), max_size=3))]))
    desk = Desk(task)
    done = effects(desk, calls)
    assert desk.verify(replied=True).success == (done == sorted(task.want))


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_every_mutation_of_the_wanted_effects_fails(data: st.DataObject) -> None:
    task = data.draw(st.sampled_from(TASKS))
    calls: Calls = [call for call in gold_calls(task) if call[0] not in READ_ONLY]
    place = data.draw(st.integers(0, len(calls) - 1))
    name, arguments = calls[place]
    match data.draw(st.sampled_from(["drop", "other order", "other tool", "other detail", "one more"])):
        case "drop":
            del calls[place]
        case "other order":
            other = data.draw(st.sampled_from([o.id for o in task.orders if o.id != arguments["id"]]))
            calls[place] = (name, {**arguments, "id": other})
        case "other tool":
            tool = data.draw(st.sampled_from([a for a in ACTS if a not in (name, "refund", "set_address")]))
            calls[place] = (tool, {"id": arguments["id"]})
        case "other detail" if "address" in arguments:
            calls[place] = (name, {**arguments, "address": arguments["address"] + "x"})
        case "other detail" if "amount" in arguments:
            calls[place] = (name, {**arguments, "amount": arguments["amount"] + 1})
        case _:
            calls.append(data.draw(acts(task).filter(lambda call: call not in calls)))
    desk = Desk(task)
    done = effects(desk, calls)
    verdict = desk.verify(replied=True)
    assert verdict.success == (done == sorted(task.want))  # an act that was refused changed nothing
    assert verdict.success is False or len(done) < len(calls)


def test_without_a_reply_nothing_is_solved() -> None:
    for task in TASKS[: len(FAMILIES)]:
        desk = Desk(task)
        effects(desk, gold_calls(task))
        assert desk.verify(replied=True).success
        assert desk.verify(replied=False).reason == "no reply to the customer"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
NAMES = [t["function"]["name"] for t in TOOLS]


@given(
    st.sampled_from(NAMES) | st.text(),
    json_values | st.fixed_dictionaries({}, optional={key: json_values for key in ("id", "email", "address", "amount")}),
)
@settings(max_examples=300, deadline=None)
def test_garbage_is_answered_with_an_error_and_changes_nothing(name: str, arguments: object) -> None:
    task = TASKS[0]
    desk = Desk(task)
    before = msgspec.json.decode(desk.snapshot())
    result = desk.call(name, arguments)
    assert json.dumps(result)
    after = msgspec.json.decode(desk.snapshot())
    assert set(result) == {"error"}
    assert (after["orders"], after["effects"]) == (before["orders"], before["effects"])
    assert (desk.calls, desk.errors) == (1, 1)


@pytest.mark.parametrize("task", TASKS[: len(FAMILIES)], ids=lambda t: t.family)
def test_a_desk_resumed_at_any_call_goes_on_as_if_nothing_had_happened(task: DeskTask) -> None:
    calls = gold_calls(task)
    for stop in range(len(calls) + 1):
        straight, first = Desk(task), Desk(task)
        results = [straight.call(*call) for call in calls]
        again = [first.call(*call) for call in calls[:stop]]
        resumed = Desk.resume(task, first.snapshot())
        again += [resumed.call(*call) for call in calls[stop:]]
        assert again == results
        assert resumed.snapshot() == straight.snapshot()
        assert resumed.verify(replied=True) == straight.verify(replied=True)


def test_a_resumed_desk_shares_nothing_with_the_one_it_came_from() -> None:
    task = next(t for t in TASKS if t.family == "cancel")
    desk = Desk(task)
    saved = desk.snapshot()
    effects(Desk.resume(task, saved), gold_calls(task))
    assert desk.snapshot() == saved


def test_a_foreign_snapshot_is_refused() -> None:
    with pytest.raises(PermanentError, match="the snapshot is of"):
        Desk.resume(TASKS[1], Desk(TASKS[0]).snapshot())
    with pytest.raises(PermanentError, match="not a snapshot"):
        Desk.resume(TASKS[0], b"{}")


def test_tools_are_closed_json_schemas_and_say_what_is_read_only() -> None:
    assert len(TOOLS) >= 9
    for tool in TOOLS:
        parameters = tool["function"]["parameters"]
        assert parameters["additionalProperties"] is False and set(parameters["required"]) == set(parameters["properties"])
        assert all("type" in p and "description" in p for p in parameters["properties"].values())
    assert READ_ONLY == {"find_orders", "get_customer", "get_payment", "track", "get_rule"}


def test_read_only_tools_change_nothing() -> None:
    task = TASKS[0]
    desk = Desk(task)
    before = msgspec.json.decode(desk.snapshot())["orders"]
    for name in READ_ONLY:
        arguments = {"email": task.email} if name in ("find_orders", "get_customer") else {"id": task.orders[0].id}
        assert "error" not in desk.call(name, arguments)
    assert msgspec.json.decode(desk.snapshot())["orders"] == before
