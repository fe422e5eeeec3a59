"""`report.html`: one page, its charts beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment

from stillhouse.trainer.evaluation.pareto import Pareto

TEMPLATE = Path(__file__).with_name("report.html.j2")


def render(found: Mapping[str, Any], ratios: Mapping[str, float | None], frontier: Pareto, failure: Sequence[str]) -> str:
    """The page for a summary."""
    policies = [found["teacher"], found["base"], *found["students"]]
    families = sorted({family for p in policies for family in p["families"]})
    page = Environment(autoescape=True).from_string(TEMPLATE.read_text())
    return page.render(
        s=found, ratios=ratios, frontier=frontier, failure=failure, policies=policies, families=families,
        number=_number, share=_share, total=_total,
    )  # fmt: skip


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _total(parts: Mapping[str, Mapping[str, int]]) -> str:
    return f"{sum(c['k'] for c in parts.values())}/{sum(c['n'] for c in parts.values())}" if parts else "-"
