"""Tasks: from a seed, solvable, and never one customer, word or wording on both sides of a part's border."""

import re
from collections import Counter

import pytest

from stillhouse.examples.order_desk.entities import SEEN, UNSEEN
from stillhouse.examples.order_desk.gold import clean_trajectory, gold_calls
from stillhouse.examples.order_desk.tasks import FAMILIES, PARTS, DeskTask, Part, make_tasks
from stillhouse.examples.order_desk.wordings import OTHER, USUAL
from stillhouse.schemas.errors import UsageError

MANY = 1600
TRAIN = make_tasks("train", MANY, seed=1)


def words(tasks: list[DeskTask]) -> set[str]:
    """Every word and number that a policy can come across in these tasks, in lower case."""
    texts = (text for t in tasks for text in (t.instruction, t.email, *(o.item for o in t.orders)))
    return {word for text in texts for word in re.findall(r"\w+", text.lower())}


@pytest.mark.parametrize("part", PARTS)
def test_every_task_can_be_solved_in_two_to_four_calls(part: Part) -> None:
    for task in make_tasks(part, 400, seed=7):
        clean_trajectory(task)  # raises when the desk does not verify it
        assert 2 <= len(gold_calls(task)) <= 4


def test_the_same_seed_gives_the_same_tasks_and_more_of_them_change_nothing() -> None:
    assert make_tasks("train", 50, seed=3) == make_tasks("train", 200, seed=3)[:50]
    assert not {t.id for t in make_tasks("train", 100, seed=3)} & {t.id for t in make_tasks("train", 100, seed=4)}
    assert not {t.id for t in make_tasks("train", 100, seed=3)} & {t.id for t in make_tasks("train", 100, seed=3, name="window-2")}


def test_an_id_belongs_to_one_content() -> None:
    tasks = [task for part in PARTS for seed in (1, 2) for task in make_tasks(part, 400, seed=seed)]
    by_id: dict[str, DeskTask] = {}
    for task in tasks:
        assert by_id.setdefault(task.id, task) == task


def test_families_take_turns_or_are_drawn_by_weight() -> None:
    assert Counter(t.family for t in make_tasks("train", 80, seed=1)) == dict.fromkeys(FAMILIES, 10)
    assert {t.family for t in make_tasks("train", 20, seed=1, families=["lost", "refund"])} == {"lost", "refund"}
    drawn = Counter(t.family for t in make_tasks("train", 600, seed=1, weights={"lost": 3.0, "combo": 1.0}))
    assert set(drawn) == {"lost", "combo"} and 2 < drawn["lost"] / drawn["combo"] < 4.5


@pytest.mark.parametrize(
    "arguments",
    [
        {"part": "test"},
        {"families": ["theft"]},
        {"families": []},
        {"weights": {"theft": 1.0}},
        {"weights": {}},
        {"weights": {"lost": -1.0, "combo": 2.0}},
    ],
)
def test_what_does_not_exist_is_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        make_tasks(**{"part": "train", "count": 1, "seed": 1, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize("part", ["validation", "seen"])
def test_seen_parts_have_the_words_of_training_and_none_of_its_customers(part: Part) -> None:
    held_out = make_tasks(part, 400, seed=1)
    assert {word for word in words(held_out) if not word.isdigit()} <= {word for word in words(TRAIN) if not word.isdigit()}
    assert not {t.email for t in held_out} & {t.email for t in TRAIN}
    assert not {t.instruction for t in held_out} & {t.instruction for t in TRAIN}
    combinations = {(t.email, o.item, o.id) for t in TRAIN for o in t.orders}
    assert not combinations & {(t.email, o.item, o.id) for t in held_out for o in t.orders}


def test_customers_of_validation_and_seen_are_apart() -> None:
    validation, seen = make_tasks("validation", 800, seed=1), make_tasks("seen", 800, seed=1)
    assert not {t.email for t in validation} & {t.email for t in seen}


def test_unseen_entities_occur_nowhere_in_training() -> None:
    assert not SEEN.words() & UNSEEN.words()
    assert not UNSEEN.words() & words(TRAIN)
    template_words = set(re.findall(r"\w+", " ".join([*USUAL.frames, *(ask for asks in USUAL.asks.values() for ask in asks)]).lower()))
    assert not UNSEEN.words() & template_words
    for task in make_tasks("unseen", 400, seed=1) + make_tasks("rephrased", 400, seed=1):
        assert set(re.findall(r"\w+", task.email)) <= UNSEEN.words()
        assert all(set(order.item.split()) <= UNSEEN.words() for order in task.orders)
        address = re.search(r"\d+ (\w+) Street, (\w+)", task.instruction)
        assert address is None or {address[1].lower(), address[2].lower()} <= UNSEEN.words()


def test_rephrased_wordings_occur_nowhere_in_training() -> None:
    trained = " ".join(t.instruction.lower() for t in TRAIN)
    pieces = [piece.strip(" ,;.!:()") for asks in OTHER.asks.values() for ask in asks for piece in re.split(r"\{\w+\}", ask.lower())]
    telling = [piece for piece in pieces if len(piece.split()) >= 3]
    assert len(telling) >= 18
    assert not [piece for piece in telling if piece in trained]
    for task in make_tasks("rephrased", 400, seed=1):
        assert shingles(task) and not shingles(task) & TRAINED_SHINGLES


def shingles(task: DeskTask) -> set[tuple[str, ...]]:
    """Four words in a row of the wording itself, with the entities taken out."""
    text = re.sub(r"<?\S+@\S+>?|\d+ \w+ Street, \w+", " ", task.instruction)
    for order in task.orders:
        text = text.replace(order.item, " _ ")
    spoken = re.findall(r"\w+", text.lower())
    return {tuple(spoken[i : i + 4]) for i in range(len(spoken) - 3)}


TRAINED_SHINGLES = {shingle for task in TRAIN for shingle in shingles(task)}
