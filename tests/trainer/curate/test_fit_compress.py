"""What the student sees: reasoning within a budget, conversations within the limit."""

from collections.abc import Sequence

import pytest

from stillhouse.schemas.messages import Message, ToolCall
from stillhouse.trainer.curate.compress import compress, shorten
from stillhouse.trainer.curate.draft import Draft
from stillhouse.trainer.curate.fit import fit
from stillhouse.trainer.curate.prune import prune_draft, without_recovery
from stillhouse.trainer.settings import CurationSettings
from tests.trainer.curation_factory import STUDENT, WordCounter, call, drafted, reply, run

LONG = (
    "The user wants something. There are many ways to think about an order desk and about what people may want from it. "
    "Order 41 is still processing so I can cancel order 41. Blue is a colour that many people like in a lamp. So I cancel it."
)
S = CurationSettings(reasoning_tokens=16)


def thinking(family: str = "cancel", name: str = "r") -> Draft:
    return drafted(run(call("cancel", {"ok": True}, id="41", reasoning=LONG), reply("Done."), family=family, name=name))


def test_the_sentences_that_carry_the_action_are_kept_in_their_order() -> None:
    message = Message(role="assistant", reasoning=LONG, tool_calls=(ToolCall(id="c", name="cancel", arguments={"id": "41"}),))
    got = shorten(message, 16, lambda t: len(t.split()))
    assert got == "Order 41 is still processing so I can cancel order 41. So I cancel it."
    assert shorten(message, 99, lambda t: len(t.split())) == LONG
    assert shorten(message, 3, lambda t: len(t.split())) == "Order 41 is"
    assert shorten(Message(role="assistant"), 3, len) is None


def test_where_the_student_sees_no_reasoning_nothing_is_done() -> None:
    result = compress([thinking()], S, WordCounter())
    assert result.notes == {"hidden": 1} and result.kept[0].steps[0].action.reasoning == LONG


def test_a_family_that_needs_its_reasoning_keeps_it() -> None:
    drafts = [thinking("hard", "a"), thinking("easy", "b")]

    def loss(rows: Sequence[Draft]) -> float:
        words = len((rows[0].steps[0].action.reasoning or "").split())
        return (2.0 - words / 100) if rows[0].family == "hard" else 1.0

    result = compress(drafts, S, WordCounter(shows_reasoning=True), loss)
    whole, short = (d.steps[0].action.reasoning for d in result.kept)
    assert whole == LONG and short is not None and len(short.split()) <= 16
    assert result.notes["off"] == ["hard"] and result.notes["compressed"] == 1
    assert set(result.notes["measured"]["hard"]) == {"full", "compressed", "none"}


def steps_of(words: int, count: int = 4, name: str = "r") -> Draft:
    body = [call("look", "w " * words, id="41")] * count
    return drafted(run(*body, reply("Done now."), ask="Cancel order 41 please", name=name))


def test_what_fits_is_one_example() -> None:
    got = fit([steps_of(3)], S, WordCounter())
    ((example,),) = got.examples.values()
    assert example.step is None and example.tokens == 4 * 3 + 3
    assert [m.role for m in example.bare] == ["system", "user"] + ["assistant", "tool"] * 4 + ["assistant"]
    assert example.mask == (False, False) + (True, False) * 4 + (True,)


def test_what_is_too_long_becomes_steps_with_as_much_context_as_fits() -> None:
    counter = WordCounter(limit=40)
    got = fit([steps_of(10)], S, counter)
    (examples,) = got.examples.values()
    assert [e.step for e in examples] == [0, 1, 2, 3, 4]
    assert all(counter.count(e.bare, (), e.mask).total <= 40 for e in examples)
    assert all(e.mask[-1] and not any(e.mask[:-1]) for e in examples)
    assert [m.role for m in examples[-1].bare] == ["system", "user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert got.result.notes == {"whole": 0, "recoveries_dropped": 0, "cut": 1, "steps": 5, "steps_too_long": 0, "examples": 5}


def with_retries(count: int, words: int = 10) -> Draft:
    bad = [call("cancel", "Error: " + "w " * words, id=f"x{i}") for i in range(count)]
    made = prune_draft(
        drafted(run(*bad, call("cancel", {"ok": True}, id="41"), reply("Done."), ask="Cancel order 41")), CurationSettings(recovery_share=1)
    )
    assert made.recoveries == count
    return made.draft


def test_recoveries_go_before_a_run_is_cut() -> None:
    with_one = 26  # words of the run with one of its two retries
    counter = WordCounter(limit=with_one + 5)
    got = fit([with_retries(2)], S, counter)
    ((example,),) = got.examples.values()
    assert example.step is None and got.result.notes["recoveries_dropped"] == 1 == got.result.notes["whole"]
    assert [m.role for m in example.bare] == ["system", "user", *["assistant", "tool"] * 2, "assistant"] and example.recovery
    assert example.bare[2].tool_calls[0].arguments == {"id": "x0"}

    ((bare,),) = fit([with_retries(2)], S, WordCounter(limit=with_one - 5)).examples.values()
    assert len(bare.bare) == 5 and not bare.recovery
    cut = fit([with_retries(2)], S, WordCounter(limit=12))
    assert cut.result.notes["recoveries_dropped"] == 0 and cut.result.notes["cut"] == 1


def test_a_recovery_stays_without_which_the_task_fails_or_a_value_has_no_source() -> None:
    draft = with_retries(1)
    assert without_recovery(draft, S) is not None
    assert without_recovery(draft, S, lambda trajectory, actions: False) is None
    assert without_recovery(draft, S, lambda trajectory, actions: None) is not None
    told = (
        call("refund", "Error: at most 77.50", id="41", amount="90"),
        call("refund", {"ok": True}, id="41", amount="77.50"),
        reply("Done."),
    )
    needed = prune_draft(drafted(run(*told, ask="Refund 90 for order 41")), CurationSettings(recovery_share=1)).draft
    assert any(s.recovery for s in needed.steps) and without_recovery(needed, S) is None


def test_context_is_bounded_by_turns_too() -> None:
    got = fit([steps_of(10)], CurationSettings(per_step=True, context_turns=1), WordCounter())
    (examples,) = got.examples.values()
    assert [len(e.bare) for e in examples] == [3, 5, 5, 5, 5]


def test_what_fits_in_no_way_is_dropped_with_its_reason() -> None:
    long, short = drafted(run(reply("x " * 50), name="long")), drafted(run(reply("x"), name="short"))
    bad = drafted(run(reply('{"no": "call"}'), name="bad"))
    got = fit([long, short, bad], S, WordCounter(limit=20))
    assert got.result.dropped == {"too_long": 1, "unwritable": 1} and list(got.examples) == ["shop/short"]


def test_only_the_teachers_steps_carry_loss_and_nothing_follows_them() -> None:
    steps = (call("look", {"x": "y"}, id="41", policy=STUDENT), call("cancel", {"ok": True}, id="41"), reply("Done.", policy=STUDENT))
    ((example,),) = fit([drafted(run(*steps))], S, WordCounter()).examples.values()
    assert [(m.role, s) for m, s in zip(example.bare, example.mask, strict=True)][-1] == ("assistant", True)
    assert sum(example.mask) == 1 and example.bare[-1].tool_calls[0].name == "cancel"


@pytest.mark.parametrize("limit", [30, 60, 90, 1000])
def test_rows_in_are_rows_out(limit: int) -> None:
    got = fit([steps_of(12), steps_of(1, name="s")], S, WordCounter(limit=limit))
    assert got.result.notes["examples"] == got.result.notes["whole"] + got.result.notes["steps"]
