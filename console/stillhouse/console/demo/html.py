"""`report.html`: one page, its charts beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment

from stillhouse.console.demo import figures
from stillhouse.console.demo.sides import Sides
from stillhouse.console.demo.text import INDENT
from stillhouse.console.page.view import STYLE
from stillhouse.trainer.evaluation.pareto import Pareto

TEMPLATE = Path(__file__).with_name("report.html.j2")


def render(
    found: Mapping[str, Any], ratios: Mapping[str, float | None], frontier: Pareto, failure: Sequence[str], sides: Sides | None
) -> str:
    """The page for a summary."""
    policies = [found["teacher"], found["base"], *found["students"]]
    families = sorted({family for p in policies for family in p["families"]})
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    return page.render(
        s=found, ratios=ratios, frontier=frontier, failure=failure, sides=sides, policies=policies, families=families,
        style=STYLE, indent=INDENT, f=figures,
    )  # fmt: skip
