"""The demo's figures, terminal text and page, from a summary made by hand."""

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from stillhouse.console.demo import charts, figures
from stillhouse.console.demo.html import render
from stillhouse.console.demo.sides import Side, Sides
from stillhouse.console.demo.text import as_text, episode_lines
from stillhouse.trainer.evaluation.benchmark import BenchTask
from stillhouse.trainer.evaluation.journal import Entry
from stillhouse.trainer.evaluation.pareto import Pareto
from stillhouse.trainer.evaluation.report import Held, Outcome
from tests.support.browser import PHONE, is_readable, opened
from tests.trainer.evaluation.fakes import episode

HOSTILE = "<script>document.title = 'owned'</script>"
PARTS = {"seen": 24, "unseen": 24, "rephrased": 16}
STAGES = [
    {"name": "success", "in": 130, "kept": 108, "dropped": {"over_quota": 22}},
    {"name": "fit", "in": 108, "kept": 0, "dropped": {"cut": 108}},
]


def policy(name: str, window: int | None, k: int, dollars: float | None) -> dict[str, Any]:
    success = {
        part: {"k": min(k, n), "n": n, "interval": [0.9 * min(k, n) / n, 0.9 * min(k, n) / n + 0.1], "errors": 0}
        for part, n in PARTS.items()
    }
    cost = {"marginal": dollars, "loaded": dollars}
    families = {f"refund{HOSTILE}": {part: {"k": cell["k"], "n": cell["n"]} for part, cell in success.items()}}
    made = {"mode": "fresh", "validation": {"success": 0.5}, "validation_loss": 0.01, "parent_loss": None, "base_loss": 2.0}
    return {
        "name": name, "window": window, "success": success, "steps_mean": 3.5, "format_error_rate": 0.109, "cost_per_success_usd": cost,
        "latency_s": None, "families": families, **(made if window else {}),
    }  # fmt: skip


def summary(last_dollars: float | None = 3.53e-5) -> dict[str, Any]:
    student = policy("student-1-30db33f3", 1, 20, last_dollars)
    waterfall = {
        "stages": STAGES,
        "events": 749, "trajectories": 130, "kept": 108, "examples": 108, "supervised_tokens": 4248, "manifest_hash": "f3" * 32,
    }  # fmt: skip
    return {
        "seed": 1, "claims": False, "notice": f"stand-in {HOSTILE}", "tasks": PARTS, "cpu_seconds": 1707.0,
        "phases": {"base model": 0.4, **{f"evaluate student-{n}-30db33f3": 60.0 + n for n in range(1, 9)}},
        "teacher": policy("teacher", None, 23, 0.02216), "base": policy("base", None, 0, None), "students": [student],
        "rejected": [{"window": 2, "reason": f"format errors 4.7 % {HOSTILE}"}],
        "waterfalls": {student["name"]: waterfall},
        "break_even": {"distillation_usd": 0.61, "successes": 28, "why": "$0.61 spent, $0.022 saved at each success: paid after 28."},
        "champion": None, "canaries": [canary()], "reruns": 12, "events": {"emitted": 3174, "stored": 3173, "dlq": 1},
        "cost": {"teacher_only_usd": 13.46, "spent_usd": 8.52, "ledger": {"teacher": 8.5, student["name"]: 0.02}},
    }  # fmt: skip


def canary() -> dict[str, Any]:
    point = {"units": 15, "estimate": -0.5, "lower": -0.8, "upper": -0.2, "against": "teacher"}
    return {
        "student": "student-1-30db33f3", "what": "window 1", "verdict": "rollback", "reason": f"worse {HOSTILE}",
        "units": {"canary": 15, "control": 57}, "success": {"canary": {"k": 7, "n": 15}, "control": {"k": 54, "n": 57}},
        "interval": [-0.8, -0.2], "margin": 0.15, "seconds_from_verdict_to_last_request": 0.26, "over_time": [point],
    }  # fmt: skip


def entry(*messages: dict[str, Any]) -> Entry:
    task = BenchTask(id="t-1", family="refund", part="seen", payload=None)
    played = episode(task, False, messages=list(messages), outcome_reason="nothing was refunded")
    outcome = Outcome(task_id=task.id, family=task.family, part=task.part, episode=played)
    held = Held(busy_s=None, wall_s=0.0)
    return Entry(benchmark="desk", policy="student-1-30db33f3", model="m", run=0, outcome=outcome, segment="1", held=held)


@pytest.mark.parametrize(
    ("usd", "shown"), [(None, "-"), (0.02216, "$22.16"), (3.49e-5, "$0.0349"), (0.000246, "$0.246"), (1.5, "$1,500.00"), (0.0, "$0")]
)
def test_money_is_said_for_a_thousand_successes(usd: float | None, shown: str) -> None:
    assert figures.dollars(usd) == shown


def test_only_students_lose_their_hash() -> None:
    assert figures.short({"name": "student-12-30db33f3", "window": 12}) == "student-12"
    assert figures.short({"name": "gpt-4o", "window": None}) == "gpt-4o"


def test_the_running_mean_is_of_what_came_before() -> None:
    assert charts.running_mean([]) == []
    assert charts.running_mean([4.0, 2.0, 0.0]) == [4.0, 3.0, 2.0]
    assert charts.running_mean([1.0] * charts.SMOOTH + [1.0 + charts.SMOOTH])[-1] == 2.0


def test_the_terminal_text_fits_80_columns_and_its_table_lines_up() -> None:
    text = as_text(summary(), {"marginal": 627.4, "loaded": None}, ["t-1"], Path("r"))
    assert "window 2 made no student: format errors 4.7 %" in text
    assert "champion: none" in text and "events: 3,174 emitted, 3,173 stored, 1 in the DLQ" in text
    told = " ".join(text.split())
    assert "(window 1): rollback, 15 : 57 units, success -80 … -20 points, last answer 0.3 s after the verdict" in told
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    head = next(n for n, line in enumerate(lines) if "rephrased" in line)
    table = lines[head : head + 4]
    assert table[1].split() == ["teacher", "23/24", "23/24", "16/16", "3.50", "10.9%", "$22.16", "$22.16"]
    for column in ("seen", "unseen", "rephrased", "steps", "errors", "marginal", "loaded"):
        end = table[0].index(column) + len(column)
        assert all(len(row) == end or row[end] == " " for row in table) and all(row[end - 1] != " " for row in table)
    assert "costs 1/627 of the teacher's, marginal" in text and "teacher's, loaded" not in text


def test_an_episode_keeps_its_columns_over_several_lines() -> None:
    call = {"function": {"name": "refund", "arguments": {"id": 1}}}
    lines = episode_lines(
        entry({"role": "system", "content": "Rules:\n1. One"}, {"role": "assistant", "content": None, "tool_calls": [call]})
    )
    assert lines == [
        "t-1 (seen, refund): nothing was refunded",
        "  system     Rules:",
        "             1. One",
        '  calls      refund {"id":1}',
    ]


def write(folder: Path, found: dict[str, Any], failure: list[str]) -> str:
    """The page with its charts; its address."""
    charts.success(folder / "success.png", [found["teacher"], found["base"], *found["students"]], "")
    charts.waterfall(folder / "waterfall-1.png", "window 1", STAGES, "")
    charts.losses(folder / "losses.png", {"window 1": []}, "")
    charts.canaries(folder / "canaries.png", found["canaries"], "")
    (folder / "pareto.png").write_bytes((folder / "losses.png").read_bytes())
    ratios = {"marginal": None if found["students"][-1]["cost_per_success_usd"]["marginal"] is None else 627.4, "loaded": None}
    page = folder / "report.html"
    sides = Sides(Side(f"curl {HOSTILE}", "{}"), Side("curl student", HOSTILE))
    frontier = Pareto(points=(), operating="teacher", why="nothing is cheaper.")
    page.write_text(render(found, ratios, frontier, failure, sides), encoding="utf-8")
    return page.as_uri()


def test_what_models_and_customers_said_stays_text(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, write(tmp_path, summary(), [HOSTILE]), width=PHONE) as (page, watched):
        assert page.title() == "Stillhouse: demo, seed 1"
        assert page.locator("#failure").inner_text() == HOSTILE
        assert "rollback" in page.locator("#canaries").inner_text() and f"worse {HOSTILE}" in page.locator("#canaries").inner_text()
        assert page.locator("#families td").first.inner_text() == f"refund{HOSTILE}"
        assert page.locator(".note").first.inner_text().startswith(f"Teacher: stand-in {HOSTILE}.")
        assert (
            page.locator(".note").last.inner_text()
            == f"Window 2 made no student: format errors 4.7 % {HOSTILE}. Its rows went back to the pool."
        )
        assert page.locator(".tile b").all_inner_texts() == ["20/24", "20/24", "16/16", "1/627", "-"]
        assert is_readable(page)
    assert watched.errors == []


def test_a_student_without_a_success_has_a_page_too(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, write(tmp_path, summary(None), ["The last student failed no task."])) as (page, watched):
        assert "one of the two had no success" in page.locator(".tile").last.inner_text()
        assert page.locator("#policies tr").last.locator("td").all_inner_texts()[-2:] == ["-", "-"]
        assert page.locator("#failure").inner_text() == "The last student failed no task."
    assert watched.errors == []
