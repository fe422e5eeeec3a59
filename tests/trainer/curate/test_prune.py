"""Failed branches go; evidence, state and the source of every value stay."""

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.schemas.messages import Message, ToolCall
from stillhouse.schemas.trajectory import Step, Trajectory
from stillhouse.trainer.curate.calls import failed, read_only
from stillhouse.trainer.curate.draft import DraftStep
from stillhouse.trainer.curate.prune import Pruned, prune, prune_draft
from stillhouse.trainer.settings import CurationSettings
from tests.trainer.curation_factory import TEACHER, actions, call, drafted, reply, run, tool

NONE = CurationSettings(recovery_share=0.0)
ALL = CurationSettings(recovery_share=1.0)
FOUND = {"orders": [{"id": "41", "status": "processing"}]}


def pruned(*steps: Step, settings: CurationSettings = NONE, **more: object) -> Pruned:
    return prune_draft(drafted(run(*steps, **more)), settings)  # type: ignore[arg-type]


def test_a_corrected_retry_goes_with_its_result() -> None:
    got = pruned(call("cancel", "Error: wrong type", id="x"), call("cancel", {"ok": True}, id="41"), reply("Done."))
    assert actions(got.draft) == ["cancel", "reply"]
    assert got.removed == {"corrected_retry": 1}
    assert [m.text for s in got.draft.steps for m in s.observation] == ['{"ok": true}']


def test_a_chain_of_failures_goes_whole() -> None:
    bad = call("cancel", {"error": "no"}, id="x")
    assert actions(pruned(bad, bad, call("cancel", {"ok": True}, id="41"), reply("Done.")).draft) == ["cancel", "reply"]


@pytest.mark.parametrize("then", [call("refund", {"ok": True}, id="41", amount="5"), reply("I cannot cancel it.")])
def test_a_failure_that_led_elsewhere_is_evidence(then: Step) -> None:
    got = pruned(call("cancel", {"error": "shipped"}, id="41"), then, reply("Done."))
    assert got.removed == {} and got.evidence == 1


def test_a_failure_answered_by_a_person_is_evidence() -> None:
    bad = msgspec.structs.replace(call("cancel", {"error": "no"}, id="x"))
    bad = msgspec.structs.replace(bad, observation=(*bad.observation, Message(role="user", content="it is 41")))
    assert pruned(bad, call("cancel", {"ok": True}, id="41"), reply("Done.")).removed == {}


def test_the_error_that_told_a_value_stays_as_masked_context() -> None:
    got = pruned(
        call("refund", "Error: total is 280", id="41", amount="1"), call("refund", {"ok": True}, id="41", amount="280"), reply("Ok.")
    )
    assert actions(got.draft) == ["refund", "refund", "reply"]
    assert [s.teaches for s in got.draft.steps] == [False, True, True]
    assert got.draft.count == 2 and got.draft.plan == ("refund",)


def test_recoveries_stay_in_context_with_their_loss_masked() -> None:
    steps = (call("cancel", "Error: wrong", id="x"), call("cancel", {"ok": True}, id="41"), reply("Done."))
    got = pruned(*steps, settings=ALL)
    assert [(m.message.role, m.supervised) for m in got.draft.conversation()][2:] == [
        ("assistant", False),
        ("tool", False),
        ("assistant", True),
        ("tool", False),
        ("assistant", True),
    ]


def test_the_recovery_share_is_drawn_by_a_hash() -> None:
    steps = (call("cancel", "Error: wrong", id="x"), call("cancel", {"ok": True}, id="41"), reply("Done."))
    drafts = [drafted(run(*steps, name=f"r{i}")) for i in range(400)]
    first = [prune_draft(d, CurationSettings()).recoveries for d in drafts]
    assert first == [prune_draft(d, CurationSettings()).recoveries for d in drafts]
    assert 50 < sum(first) < 110


def test_an_exact_repeat_with_an_equal_answer_goes() -> None:
    got = pruned(call("find", FOUND, email="ann@web.io"), call("find", FOUND, email="ann@web.io"), call("cancel", {"ok": True}, id="41"))
    assert actions(got.draft) == ["find", "cancel"] and got.removed == {"repeat": 1}


def test_a_repeat_that_may_have_changed_state_stays() -> None:
    got = pruned(call("refund", {"ok": True}, id="41", amount="5"), call("refund", {"ok": True}, id="41", amount="5"), reply("Twice."))
    assert got.removed == {}


def test_of_two_equal_errors_the_evidence_stays() -> None:
    bad = call("cancel", {"error": "shipped"}, id="41")
    got = pruned(bad, bad, call("refund", {"ok": True}, id="41", amount="5"), reply("Refunded."))
    assert actions(got.draft) == ["cancel", "refund", "reply"] and got.removed == {"repeat": 1}


def test_an_unused_read_goes() -> None:
    got = pruned(call("look", {"id": "77", "colour": "teal"}, id="41"), call("cancel", {"ok": True}, id="41"), reply("Done."))
    assert actions(got.draft) == ["cancel", "reply"] and got.removed == {"unused_read": 1}


@pytest.mark.parametrize(
    "later",
    [
        (call("refund", {"ok": True}, id="41", amount="88.50"), reply("Done.")),
        (reply("You get 88.50 back."),),
        (call("cancel", {"ok": True}, id="41", reasoning="It cost 88.5, so cancel."), reply("Done.")),
    ],
)
def test_a_read_whose_value_is_used_stays(later: tuple[Step, ...]) -> None:
    assert pruned(call("look", {"total": 88.5}, id="41"), *later).removed == {}


def test_a_read_of_a_tool_that_nobody_declared_read_only_stays() -> None:
    steps = (call("peek", {"x": "77"}, id="41"), call("cancel", {"ok": True}, id="41"), reply("Done."))
    tools = (tool("peek", "id"), tool("cancel", "id"))
    assert pruned(*steps, tools=tools).removed == {}
    told = CurationSettings(recovery_share=0.0, read_only_tools=("peek",))
    assert pruned(*steps, tools=tools, settings=told).removed == {"unused_read": 1}


def test_with_a_value_from_nowhere_no_read_counts_as_unused() -> None:
    got = pruned(call("look", {"a": 40, "b": 2}, id="41"), call("refund", {"ok": True}, id="41", amount="42"), reply("Done."))
    assert got.removed == {}


def test_an_answer_that_says_nothing_is_not_judged() -> None:
    assert pruned(call("look", {"late": False}, id="41"), call("cancel", {"ok": True}, id="41"), reply("Done.")).removed == {}


def test_a_chain_of_unused_reads_goes_whole() -> None:
    steps = (
        call("find", {"ref": "q9"}, email="ann@web.io"),
        call("look", {"colour": "teal"}, id="q9"),
        call("cancel", {"ok": True}, id="41"),
    )
    assert actions(pruned(*steps, reply("Done.")).draft) == ["cancel", "reply"]


def test_a_marked_branch_goes_whole_unless_it_changed_state() -> None:
    def marked(step: Step) -> Step:
        return msgspec.structs.replace(step, action=msgspec.structs.replace(step.action, extra={"pruned": True}))

    end = (call("cancel", {"ok": True}, id="41"), reply("Done."))
    got = pruned(marked(reply("Let me think.")), marked(call("look", {"x": "y7"}, id="41")), *end)
    assert actions(got.draft) == ["cancel", "reply"] and got.removed == {"branch": 2}
    assert got.draft.steps[0].state[0].role == "user"  # what the person asked has moved on
    assert pruned(marked(call("refund", {"ok": True}, id="41", amount="5")), *end).removed == {}


def test_one_call_of_several_goes_with_its_own_result() -> None:
    two = Step(
        index=0,
        action=Message(
            role="assistant",
            tool_calls=(
                ToolCall(id="a", name="look", arguments={"id": "41"}),
                ToolCall(id="b", name="find", arguments={"email": "ann@web.io"}),
            ),
        ),
        policy=TEACHER,
        event_id="",
        occurred_at=0,
        observation=(
            Message(role="tool", content='{"x": "zz9"}', tool_call_id="a"),
            Message(role="tool", content='{"id": "o-88"}', tool_call_id="b"),
        ),
    )
    got = pruned(two, call("cancel", {"ok": True}, id="o-88"), reply("Done."))
    assert actions(got.draft) == ["find", "cancel", "reply"]
    assert [m.tool_call_id for m in got.draft.steps[0].observation] == ["b"]


def test_a_pruned_trajectory_must_still_succeed_where_it_can_be_replayed() -> None:
    bad = (call("cancel", "Error: wrong", id="x"), call("cancel", {"ok": True}, id="41"), reply("Done."))
    drafts = [drafted(run(*bad, name=n)) for n in ("works", "breaks", "unknown")] + [drafted(run(reply("Hi."), name="same"))]
    asked: list[str] = []

    def replay(trajectory: Trajectory, actions: Sequence[Message]) -> bool | None:
        asked.append(trajectory.trajectory_id)
        assert [a.tool_calls[0].arguments for a in actions if a.tool_calls] == [{"id": "41"}]
        return {"works": True, "breaks": False}.get(trajectory.trajectory_id)

    result = prune(drafts, NONE, replay)
    assert asked == ["works", "breaks", "unknown"]
    assert result.dropped == {"replay_failed": 1} and result.notes["replayed"] == 2
    assert result.notes["calls"] == {"corrected_retry": 2}


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ('{"error": "no"}', True),
        ('{"error": null, "id": 4}', False),
        ('{"ok": false}', True),
        ('{"returncode": 1, "output": ""}', True),
        ("Error: gift card balance is not enough", True),
        ('{"status": "failed", "id": 4}', False),  # what was asked for failed, not the asking
        ("No error was found", False),
    ],
)
def test_what_counts_as_a_failed_call(text: str, bad: bool) -> None:
    assert failed(Message(role="tool", content=text)) is bad


def test_read_only_is_read_from_the_definition_or_its_annotations() -> None:
    plain = {"type": "function", "function": {"name": "a", "readOnlyHint": True}}
    outer = {"type": "function", "function": {"name": "b"}, "annotations": {"readOnlyHint": True}}
    assert read_only((plain, outer, tool("c"), tool("d", read_only=True)), ("e",)) == {"a", "b", "d", "e"}


IDS = st.sampled_from(["41", "42", "43"])
RESULTS = st.sampled_from(["Error: no", '{"ok": true}', '{"id": "42"}', '{"id": "43", "n": 7}'])
STEPS = st.one_of(
    st.builds(lambda n, i, r: call(n, r, id=i), st.sampled_from(["look", "cancel", "find"]), IDS, RESULTS),
    st.builds(lambda n: reply(f"It is {n}."), IDS),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=7), st.sampled_from([0.0, 0.5, 1.0]))
def test_whatever_is_pruned_state_evidence_and_sources_stay(steps: list[Step], share: float) -> None:
    draft = drafted(run(*steps))
    got = prune_draft(draft, CurationSettings(recovery_share=share)).draft
    assert got.steps[-1].action == draft.steps[-1].action  # the end is never pruned
    changed = [
        (c.name, c.arguments) for s in draft.steps for c in s.action.tool_calls if c.name == "cancel" and not failed(s.observation[0])
    ]
    assert [
        (c.name, c.arguments) for s in got.steps for c in s.action.tool_calls if c.name == "cancel" and not failed(s.observation[0])
    ] == changed
    before, after = _sources(draft.steps), _sources(got.steps)
    assert all(after[action] == before[action] for action in after)


def _sources(steps: Sequence[DraftStep]) -> dict[int, set[str]]:
    """For each action (by identity) the ids it uses that the instruction (41) or an earlier answer told."""
    seen, found = "41", {}
    for step in steps:
        found[id(step.action)] = {i for i in ("41", "42", "43") if i in str(step.action) and i in seen}
        seen += " ".join(m.text for m in step.observation)
    return found
