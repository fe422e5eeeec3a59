"""Sides and groups of tasks."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.schemas.ledger import Batch, LeaderLedger, TaskText, embed
from stillhouse.trainer.examples import Side

ASK = "please cancel the order {} of the blue lamp and mail the receipt to ann@web.io, thank you very much indeed"


def task(key: str, text: str, family: str = "cancel") -> TaskText:
    return TaskText(tenant="shop", family=family, task_key=key, text=text)


def ledger(**rule: float) -> LeaderLedger:
    return LeaderLedger(seed=1, **rule)  # type: ignore[arg-type]


def leader(found: LeaderLedger, key: str, family: str = "cancel") -> str:
    place = found.place("shop", family, key)
    assert place is not None
    return place.leader


def side(found: LeaderLedger, key: str) -> Side:
    place = found.place("shop", "cancel", key)
    assert place is not None
    return place.side


def test_two_tasks_that_differ_only_in_entities_are_not_one() -> None:
    found = ledger().assign([task("a", ASK.format(4821)), task("b", ASK.format(4822))])
    assert (leader(found, "a"), leader(found, "b")) == ("a", "b")


def test_the_same_entities_in_nearly_the_same_words_are_one() -> None:
    found = ledger().assign([task("a", ASK.format(4821)), task("b", ASK.format(4821).replace("please", "do please"))])
    assert leader(found, "b") == "a"


def test_families_and_tenants_do_not_meet() -> None:
    found = ledger().assign([task("a", ASK.format(1)), task("b", ASK.format(1), "refund")])
    assert leader(found, "b", "refund") == "b"


def test_a_task_never_moves_whatever_comes_later() -> None:
    first = ledger().assign([task(f"t{i}", ASK.format(i)) for i in range(40)])
    places = {f"t{i}": first.place("shop", "cancel", f"t{i}") for i in range(40)}
    later = first.assign([task(f"a{i}", ASK.format(i).replace("very", "so very")) for i in range(60)] + [task("t3", "something else")])
    assert {k: later.place("shop", "cancel", k) for k in places} == places
    assert first.place("shop", "cancel", "a0") is None


def test_sides_take_their_shares() -> None:
    found = ledger().assign([task(f"t{i}", f"order {i}") for i in range(2000)])
    counts = {s: sum(side(found, f"t{i}") is s for i in range(2000)) for s in Side}
    assert 150 < counts[Side.TEST] < 250 and 150 < counts[Side.VALIDATION] < 250 and counts[Side.BRIDGE] == 0


def bridged() -> tuple[LeaderLedger, str]:
    """A ledger with leaders of two sides that are not near each other, and a text that is near both."""
    words = "apple bridge candle dragon engine forest garden harbor island jungle kettle lemon marble needle orange pepper quiver".split()
    one, other, between = " ".join(words[:12]), " ".join(words[5:17]), " ".join(words[2:15])
    for i in range(200):
        found = LeaderLedger(seed=i, similarity=0.7).assign([task("a", one), task("b", other)])
        if side(found, "a") is not side(found, "b"):
            return found, between
    raise AssertionError("no seed puts the two on different sides")


def test_a_task_near_leaders_of_two_sides_is_a_bridge_for_ever() -> None:
    found, between = bridged()
    assert leader(found, "b") == "b"
    after = found.assign([task("x", between)])
    assert side(after, "x") is Side.BRIDGE
    assert side(after.assign([task("y", between)]), "y") is Side.BRIDGE


def test_embeddings_are_integers_and_survive_storage_bit_for_bit() -> None:
    found = ledger().assign([task("a", ASK.format(1)), task("b", "ärger mit 7 ☃ orders")])
    stored = [msgspec.json.decode(msgspec.json.encode(b), type=Batch) for b in found.batches]
    again = LeaderLedger(stored, seed=1)
    assert again.batches == found.batches
    assert embed(["abc abc"]) == embed(["ABC  abc"]) and embed([]) == []


def test_a_batch_is_what_one_planning_added() -> None:
    first = ledger().assign([task("a", "one 1")])
    second = first.assign([task("b", "two 2"), task("c", "three 3", "refund")])
    assert [(b.family, b.number) for b in second.added(first)] == [("cancel", 1), ("refund", 0)]
    assert first.assign([task("b", "x")]).added(first)[0].key == second.added(first)[0].key  # two planners collide


TASKS = [task(f"t{i}", ASK.format(i % 4) if i % 2 else f"order {i % 3} " * (1 + i % 2)) for i in range(12)]


@settings(max_examples=40, deadline=None)
@given(st.permutations(TASKS), st.lists(st.sampled_from(TASKS), max_size=5))
def test_no_order_of_arrival_shows(order: list[TaskText], twice: list[TaskText]) -> None:
    assert ledger().assign([*order, *twice]).batches == ledger().assign(TASKS).batches


@pytest.mark.parametrize("text", ["", "  ", "a"])
def test_texts_without_grams_have_a_place(text: str) -> None:
    found = ledger().assign([task("a", text), task("b", text)])
    assert leader(found, "b") == "a"
