"""Every command and option that README and docs show exists."""

import re
import shlex
from pathlib import Path

import pytest

from stillhouse.console import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_LINE = re.compile(r"^(?:    |\t|\$ )?(?:\w+=\S+ )*stillhouse (?P<rest>[^`]*)$")
_INLINE = re.compile(r"`stillhouse (?P<rest>[^`\n]+)`")


def commands() -> list[tuple[str, str]]:
    found = set()
    for page in PAGES:
        fenced = False
        for line in page.read_text().splitlines():
            if line.startswith("```"):
                fenced = not fenced
            code = _LINE.match(line) if fenced or line.startswith("    ") else None
            shown = [code["rest"]] if code else [m["rest"] for m in _INLINE.finditer(line)]
            found |= {(page.name, rest.strip()) for rest in shown}
    return sorted(found)


def parts(shown: str) -> tuple[list[str], list[str]]:
    """The words that name the command (a group and one of its commands, or one command), and the options that follow."""
    words = shlex.split(shown, comments=True)
    names = [words[0]] if words[0] in cli.COMMANDS else words[:2]
    return names, [word.partition("=")[0] for word in words if word.startswith("--")]


@pytest.mark.parametrize(("page", "shown"), commands())
def test_what_the_docs_show_exists(page: str, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    names, options = parts(shown.replace("[", "").replace("]", ""))
    for name in names[-1].split("|"):
        assert cli.run([*names[:-1], name, "--help"]) == 0, f"{page}: stillhouse {shown}"
        shown_help = capsys.readouterr().out
        assert all(option in shown_help for option in options), f"{page}: {shown}: {options}"
