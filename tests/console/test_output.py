"""Tables and objects as a person sees them."""

import io

import pytest
from rich.console import Console

from stillhouse.console import output


def shown(monkeypatch: pytest.MonkeyPatch, width: int) -> io.StringIO:
    text = io.StringIO()
    monkeypatch.setattr(output, "out", Console(file=text, highlight=False, width=width))
    return text


def test_a_name_stays_whole_however_narrow_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    text, key = shown(monkeypatch, 40), "acme/" + "k" * 60
    output.show_list([{"key": key, "family": "address_shipped"}], ("key", "family"), as_json=False, empty="")
    header, row = text.getvalue().splitlines()
    assert header.split() == ["key", "family"] and row.split() == [key, "address_shipped"]


def test_only_prose_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, 40)
    output.print_table(output.table([["side", "word " * 20]], ["stage", "notes"], wrapped=("notes",)))
    assert len(text.getvalue().splitlines()) == 2  # printed at the width it needs …
    output.out.print(output.table([["side", "word " * 20]], ["stage", "notes"], wrapped=("notes",)))
    assert all(len(line) <= 40 for line in text.getvalue().splitlines()[2:])  # … or at the window's, where prose may wrap


def test_what_is_inside_of_what_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, 80)
    output.show_object({"rows": {"outcome": {"success": 3, "failure": 2}, "status": {"ended": 5}}, "tag": "[x]"}, as_json=False)
    assert "outcome (success 3, failure 2), status (ended 5)" in text.getvalue() and "[x]" in text.getvalue()
