"""A shadow for the command line: which server answers, and how its report is shown."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from stillhouse.console import context, output
from stillhouse.console.stack import record as records
from stillhouse.trainer import shadow as shadows
from stillhouse.trainer.evaluation.engine import StudentServer, student_engine
from stillhouse.trainer.evaluation.stats import Rate
from stillhouse.trainer.shadow_job import LOG
from stillhouse.trainer.shadow_score import Figures

_FAMILY_COLUMNS = ["family", "steps", "asked", "fallbacks", "format errors", "agreement", "calls", "replies", "median s"]


@contextmanager
def server(loaded: context.Context, base: Path) -> Iterator[tuple[StudentServer, bool]]:
    """The running stack's student server, else one of our own; and whether nobody else uses it."""
    record = records.read(loaded.state)
    if record and record.supervisor.alive and record.student:
        yield StudentServer(record.student), False
        return
    log = loaded.config.state_dir("logs") / LOG
    with student_engine(base, students=loaded.config.state_dir("students"), log=log) as own:
        yield own, True


def print_families(report: shadows.ShadowReport) -> None:
    """A line a family, and one for all."""
    rows = [_row(family or "-", found) for family, found in (*report.families.items(), ("all", report.all))]
    output.print_table(output.table(rows, _FAMILY_COLUMNS))


def _row(family: str, found: Figures) -> list[Any]:
    rates = (found.fallbacks, found.format_errors, found.agreement, found.calls, found.replies)
    return [family, found.steps, found.asked, *map(_percent, rates), found.latency_median_s]


def _percent(found: Rate) -> str:
    if found.value is None:
        return "-"
    return f"{found.value:.1%} ({found.interval.low:.1%} to {found.interval.high:.1%})"


def brief(report: shadows.ShadowReport) -> dict[str, Any]:
    """A shadow in some lines: what `show` has of it."""
    found = report.all
    return {
        "steps": found.steps,
        "asked": found.asked,
        "agreement": found.agreement.value,
        "format_errors": found.format_errors.value,
        "fallbacks": found.fallbacks.value,
        "reasons": found.reasons,
        "latency_median_s": found.latency_median_s,
        "latency_p95_s": found.latency_p95_s,
        "usd_per_step": report.marginal.usd_per_step,
        "teacher_usd_per_step": found.teacher_usd_per_step,
        "left_out": msgspec.to_builtins(report.left_out),
    }
