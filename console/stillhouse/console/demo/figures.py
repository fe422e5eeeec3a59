"""How the demo's figures are written, the same on the page and in the terminal. What was not measured is a dash."""

from collections.abc import Mapping

NONE = "-"
SUCCESSES = 1000
"""Money is said for so many successes: a student's single one costs less than anybody has a feeling for."""


def number(value: float | None, places: int = 2) -> str:
    """With a fixed number of decimal places, so that a column lines up."""
    return NONE if value is None else f"{value:,.{places}f}"


def share(value: float | None) -> str:
    """As per cent."""
    return NONE if value is None else f"{value:.1%}"


def dollars(value: float | None) -> str:
    """US dollars for `SUCCESSES` successes, from the dollars for one."""
    if value is None:
        return NONE
    amount = value * SUCCESSES
    return f"${amount:,.2f}" if amount >= 1 else f"${amount:.3g}"


def solved(cell: Mapping[str, int] | None) -> str:
    """`k/n`."""
    return f"{cell['k']}/{cell['n']}" if cell else NONE


def added(parts: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """All parts as one."""
    return {name: sum(cell[name] for cell in parts.values()) for name in ("k", "n")}


def short(policy: Mapping[str, object]) -> str:
    """A student's name without its hash; what is no student keeps its name."""
    name = str(policy["name"])
    return name.rsplit("-", 1)[0] if policy.get("window") else name
