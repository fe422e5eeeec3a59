"""The values in a conversation: what an observation told, and what an action, a thought or a reply later uses.

A literal is a number, an id, an e-mail, a short string of a JSON document, or a name. Numbers have one spelling (280, 280.0 and
1,280 against 1280). All literals are folded, so that a value is found again in another case.
"""

import json
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

_TOKEN = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+|\w+(?:[-_.,:/#]\w+)*")
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_SHORT = 4  # words up to which a string is a value; longer ones are prose
_NAME = 3  # letters from which a capitalised word is a name


def fold(text: str) -> str:
    """Text as it is compared: one spelling, one case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def entities(text: str) -> frozenset[str]:
    """Numbers, ids and e-mails of a text."""
    return frozenset(_entity(t) for t in _tokens(text) if _is_entity(t))


def names(text: str) -> frozenset[str]:
    """Capitalised words of a text."""
    return frozenset(fold(t) for t in _tokens(text) if len(t) >= _NAME and t[0].isupper())


def told(text: str) -> frozenset[str]:
    """All literals of an observation, JSON or not."""
    parsed = _parsed(text)
    if parsed is not None:
        return frozenset(literal for leaf in _leaves(parsed) for literal in _of_leaf(leaf))
    return frozenset(_of_leaf(text)) if len(text.split()) <= _SHORT else entities(text) | names(text)


def given(arguments: Any) -> frozenset[str]:
    """The values that a call was given: short strings whole, numbers, ids and e-mails; prose only for its numbers and ids."""
    found: set[str] = set()
    for leaf in _leaves(arguments):
        text = _text(leaf)
        found |= entities(text)
        if 0 < len(text.split()) <= _SHORT and not isinstance(leaf, bool):
            found.add(_entity(text) if _is_entity(text) else fold(text))
    return frozenset(found)


def searchable(value: Any) -> str:
    """A text or JSON value as `occurs` searches it: folded words between single spaces, each number in its one spelling."""
    text = value if isinstance(value, str) else " ".join(map(_text, _leaves(value, keys=True)))
    return f" {' '.join(_spread(t) for t in _tokens(text))} "


def occurs(literal: str, text: str) -> bool:
    """Whether a literal occurs in a `searchable` text as whole words."""
    return f" {' '.join(_spread(t) for t in _tokens(literal))} " in text


def _spread(token: str) -> str:
    """A token as words. An id that holds another ("ORD-4821", "4821") is found by it, because both are split alike."""
    whole = "@" in token or _GROUPED.fullmatch(token) or _NUMBER.fullmatch(token)
    return _entity(token) if whole else " ".join(re.findall(r"\w+", fold(token)))


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(unicodedata.normalize("NFKC", text))


def _is_entity(token: str) -> bool:
    return "@" in token or any(c.isdigit() for c in token)


def _entity(token: str) -> str:
    """One spelling for a number; anything else folded."""
    plain = token.replace(",", "") if _GROUPED.fullmatch(token) else token
    if _NUMBER.fullmatch(plain):
        return plain.rstrip("0").rstrip(".") if "." in plain else plain
    return fold(token)


def _of_leaf(leaf: Any) -> Iterator[str]:
    if leaf is None or isinstance(leaf, bool):
        return
    text = _text(leaf)
    yield from entities(text) | names(text)
    if 0 < len(text.split()) <= _SHORT:
        yield _entity(text) if _is_entity(text) else fold(text)


def _text(leaf: Any) -> str:
    return leaf if isinstance(leaf, str) else json.dumps(leaf)


def _parsed(text: str) -> Any:
    """The JSON container in a text, else None: a bare number or word is read as text."""
    stripped = text.strip()
    if not stripped.startswith(("{", "[")):
        return None
    try:
        return json.loads(stripped)
    except ValueError:
        return None


def _leaves(value: Any, *, keys: bool = False) -> Iterator[Any]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if keys or _is_entity(str(key)):  # documents that are keyed by ids
                yield str(key)
            yield from _leaves(inner, keys=keys)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _leaves(inner, keys=keys)
    else:
        yield value
