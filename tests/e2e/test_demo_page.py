"""`report.html` of a fast demo as a person opens it: from the disk, in Chromium."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from stillhouse.trainer.evaluation.journal import read_journal
from tests.support.browser import DESKTOP, PHONE, Scheme, Watched, is_readable, opened
from tests.support.cli import Ran

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]
CHARTS = ["success.png", "pareto.png", "canaries.png", "waterfall-1.png", "waterfall-2.png", "losses.png"]


@pytest.fixture(scope="module")
def report(fast_demo: tuple[Path, Ran]) -> Path:
    return fast_demo[0] / "demo-fast-1" / "report"


@pytest.fixture(scope="module")
def summary(report: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((report / "summary.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture
def seen(browser: Browser, report: Path) -> Iterator[tuple[Page, Watched]]:
    with opened(browser, (report / "report.html").as_uri()) as found:
        yield found


def test_it_opens_from_the_disk_with_all_its_charts_and_asks_nobody_else(seen: tuple[Page, Watched]) -> None:
    page, watched = seen
    images = page.evaluate(
        "[...document.images].map(i => [i.getAttribute('src'), i.complete && i.naturalWidth >= 1000, i.alt.length > 20])"
    )
    assert images == [[chart, True, True] for chart in CHARTS]
    assert watched.errors == []
    assert all(url.startswith(("file:", "data:")) for url in watched.requests)


def test_it_says_at_once_what_is_not_claimed(seen: tuple[Page, Watched], summary: dict[str, Any]) -> None:
    note = seen[0].locator(".note.warn")
    assert summary["notice"] in note.inner_text() and "these figures claim nothing" in note.inner_text()
    box = note.bounding_box()
    assert box is not None and box["y"] + box["height"] < 800, "not without scrolling"


def test_its_tables_say_what_the_summary_says(seen: tuple[Page, Watched], summary: dict[str, Any]) -> None:
    page, _ = seen
    policies = [summary["teacher"], summary["base"], *summary["students"]]
    shown = [row.locator("td").all_inner_texts() for row in page.locator("#policies tr").all()]
    for policy, cells in zip(policies, [cells for cells in shown if cells], strict=True):
        parts = [f"{policy['success'][part]['k']}/{policy['success'][part]['n']}" for part in summary["tasks"]]
        assert [cells[0], *(cell.split()[0] for cell in cells[1:4])] == [policy["name"], *parts]
        assert float(cells[4]) == pytest.approx(policy["steps_mean"], abs=0.005)
        assert float(cells[5].rstrip("%")) / 100 == pytest.approx(policy["format_error_rate"], abs=0.0005)
        assert float(cells[6]) == pytest.approx(policy["latency_s"]["p50"], abs=0.005)
        for cell, kind in zip(cells[7:], ("marginal", "loaded"), strict=True):
            cost = policy["cost_per_success_usd"][kind]
            assert cell == "-" if cost is None else float(cell.lstrip("$").replace(",", "")) == pytest.approx(1000 * cost, rel=0.01)
    families = {cells[0]: cells[1:] for row in page.locator("#families tr").all() if (cells := row.locator("td").all_inner_texts())}
    assert families == {
        family: [
            f"{sum(c['k'] for c in p['families'][family].values())}/{sum(c['n'] for c in p['families'][family].values())}" for p in policies
        ]
        for family in summary["teacher"]["families"]
    }


def test_its_waterfalls_are_the_windows(seen: tuple[Page, Watched], summary: dict[str, Any]) -> None:
    tables = seen[0].locator(".pair table").all()
    for table, waterfall in zip(tables, summary["waterfalls"].values(), strict=True):
        shown = [cells[:3] for row in table.locator("tr").all() if (cells := row.locator("td").all_inner_texts())]
        assert shown == [[stage["name"], str(stage["in"]), str(stage["kept"])] for stage in waterfall["stages"]]


def test_one_failure_is_printed_in_full(seen: tuple[Page, Watched], report: Path, summary: dict[str, Any]) -> None:
    shown = seen[0].locator("#failure span").all_inner_texts()
    last = summary["students"][-1]["name"]
    episodes = {e.outcome.task_id: e.outcome.episode for e in read_journal(report / "trajectories.jsonl") if e.policy == last}
    episode = episodes[shown[0].split()[0]]
    assert episode is not None and not episode.success and episode.messages
    said = [line for message in episode.messages for line in str(message.get("content") or "").splitlines()]
    rest = iter(shown[1:])
    assert all(any(line in text for text in rest) for line in said), "every line that was said, in order"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_it_is_readable_on_phone_and_desktop_in_light_and_dark(browser: Browser, report: Path, width: int, scheme: Scheme) -> None:
    with opened(browser, (report / "report.html").as_uri(), width=width, scheme=scheme) as (page, _):
        assert is_readable(page)
        assert (page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)") == (scheme == "light")
