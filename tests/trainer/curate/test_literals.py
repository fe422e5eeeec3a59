"""Values of a conversation, and finding them again."""

import pytest

from stillhouse.schemas.literals import entities, given, occurs, searchable, told


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("order ORD-4821 of Ann.Lee@mail.com", {"ord-4821", "ann.lee@mail.com"}),
        ("it costs $1,280.50 or 280.0", {"1280.5", "280"}),
        ("on 2024-05-20, please", {"2024-05-20"}),
        ("nothing here", set()),
    ],
)
def test_entities(text: str, expected: set[str]) -> None:
    assert entities(text) == expected


def test_an_answer_tells_the_values_of_its_document_and_the_ids_it_is_keyed_by() -> None:
    found = told('{"payment": {"card_77": {"owner": "Mia Li", "ok": true}}, "note": "a long sentence about the order of Bob"}')
    assert found == {"card_77", "mia li", "mia", "bob"}


def test_a_call_gives_its_short_values_whole_and_of_prose_only_the_ids() -> None:
    assert given({"id": "41", "to": "Oak Street", "why": "the customer wants order 7 cancelled at once", "n": 2.0, "b": True}) == {
        "41", "oak street", "7", "2",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("literal", "text", "found"),
    [
        ("41", "order 41.", True),
        ("41", "order 417", False),
        ("4821", "ORD-4821", True),
        ("280", "it is 280.00 USD", True),
        ("oak street", "12 Oak  Street, Bath", True),
        ("ann@web.io", "(ANN@web.io)", True),
    ],
)
def test_a_value_is_found_as_whole_words_in_any_spelling(literal: str, text: str, found: bool) -> None:
    assert occurs(literal, searchable(text)) is found
    assert occurs(literal, searchable({"key": [text]})) is found
