"""The demo's report: `report.html`, charts, `summary.json`; `trajectories.jsonl` is there already, written episode by episode."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from stillhouse.console.demo import charts
from stillhouse.console.demo.html import render
from stillhouse.console.demo.run import Story
from stillhouse.console.demo.settings import DemoSettings
from stillhouse.console.demo.summary import loop_fields, paid_back, ratio_of_costs, summary
from stillhouse.console.demo.text import as_text, episode_lines
from stillhouse.trainer.evaluation.journal import Entry, read_journal
from stillhouse.trainer.evaluation.pareto import pareto, plot

JOURNAL = "trajectories.jsonl"


@dataclass(frozen=True)
class Report:
    """What was written: the figures, and what the terminal shows of them."""

    summary: dict[str, Any]
    text: str


def write_report(folder: Path, settings: DemoSettings, seed: int, story: Story, phases: Mapping[str, float]) -> Report:
    """Write the report of a demo that is over.

    Args:
        folder: where; `trajectories.jsonl` is in it.
        settings: what ran.
        seed: with which seed.
        story: what happened.
        phases: seconds by phase.
    """
    assert story.evaluated is not None, "write it when the demo is over"
    policies = (story.evaluated.teacher, story.evaluated.base, *story.evaluated.students)
    found = summary(
        settings,
        seed,
        phases=phases,
        cpu_seconds=story.cpu_seconds,
        notice=story.notice,
        teacher=story.evaluated.teacher,
        base=story.evaluated.base,
        students=[(number, report, job) for report, (number, job) in zip(story.evaluated.students, story.jobs.items(), strict=True)],
        rejected=story.rejected,
    )
    for student in found["students"]:
        student["shadow"] = story.shadows.get(student["name"])
    found |= loop_fields(story)
    found["break_even"] = paid_back(found, story, settings)
    frontier = pareto(policies, teacher="teacher")
    note = story.notice + ("" if settings.claims else "; tiny random model: no claims")
    charts.success(folder / "success.png", [found["teacher"], found["base"], *found["students"]], note)
    charts.losses(folder / "losses.png", {f"window {n}": curve for n, curve in story.losses.items()}, note)
    for student in found["students"]:
        number = student["window"]
        charts.waterfall(folder / f"waterfall-{number}.png", f"window {number}", found["waterfalls"][student["name"]]["stages"], note)
    plot(frontier, folder / "pareto.png", note=note)
    charts.canaries(folder / "canaries.png", found["canaries"], note)
    failure = one_failure(read_journal(folder / JOURNAL), found["students"][-1]["name"], seed)
    lines = episode_lines(failure) if failure else ["The last student failed no task."]
    text = as_text(found, ratio_of_costs(found), lines, folder)
    (folder / "report.html").write_text(render(found, ratio_of_costs(found), frontier, lines, story.sides), encoding="utf-8")
    (folder / "summary.json").write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS) + b"\n")
    return Report(found, text)


def one_failure(entries: list[Entry], student: str, seed: int) -> Entry | None:
    """A failed episode of a student, drawn by the seed; None when it failed none."""
    failed = [e for e in entries if e.policy == student and e.outcome.episode and not e.outcome.episode.success]
    return random.Random(f"{seed}/failure").choice(sorted(failed, key=lambda e: e.outcome.task_id)) if failed else None
