"""The status page as a person sees it, in Chromium, over a filled state folder."""

import asyncio
import json
import os
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from playwright.sync_api import Browser, Page, expect
from pytest_httpserver import HTTPServer

from stillhouse.console import context
from stillhouse.console.page.__main__ import application
from stillhouse.console.stack import record as records
from stillhouse.console.stack.process import create_time
from stillhouse.schemas.tables import TRAJECTORIES
from tests.support.browser import DESKTOP, PHONE, Scheme, is_readable, opened

HOSTILE = """<img src="x" onerror="document.title = 'owned'"><script>document.title = 'owned'</script>"""
TICK_MS = 5100
DEADLINE_S = 60
METRICS = """# HELP stillhouse_ingest_lag Records
stillhouse_ingest_lag{partition="0"} 1200.0
stillhouse_ingest_lag{partition="1"} 34.0
stillhouse_ingest_open_trajectories 7.0
"""


def store(state: Path, family: str, *outcomes: str) -> None:
    """Add a row for each outcome."""
    found = context.load(state).store()
    before = len(found.trajectories(columns=["key"]))
    rows: list[dict[str, Any]] = [{column.name: None for column in TRAJECTORIES.columns} for _ in outcomes]
    for number, (row, outcome) in enumerate(zip(rows, outcomes, strict=True), before):
        row |= {"key": f"default/{number}", "task_id": HOSTILE, "family": family, "status": "ended", "outcome": outcome, "steps": 3}
    assert found.insert_if_absent("trajectories", rows) == len(outcomes)


class Server:
    """A status page in a thread of this process; it can be stopped, and started again at its address."""

    def __init__(self, state: Path) -> None:
        self._state, self._port = state, 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._runner = self._run(self._listen())

    def stop(self) -> None:
        self._run(self._runner.cleanup())

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_S)
        self._loop.close()

    async def _listen(self) -> web.AppRunner:
        runner = web.AppRunner(application(context.load(self._state)), access_log=None, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self._port).start()
        self._port = runner.addresses[0][1]
        return runner

    def _run(self, work: Coroutine[None, None, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE_S)


@contextmanager
def served(state: Path) -> Iterator[Server]:
    """A status page over a state folder."""
    server = Server(state)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with four runs, and one of a task that would like to run a script."""
    folder = tmp_path_factory.mktemp("page")
    store(folder, "refund", "success", "success", "failure", "unknown")
    store(folder, HOSTILE, "success")
    return folder


@pytest.fixture(scope="module")
def page_url(state: Path) -> Iterator[str]:
    with served(state) as server:
        yield server.url


def tile(page: Page, label: str) -> str:
    """The figure above a label."""
    return page.locator(".tile", has=page.get_by_text(label, exact=True)).locator("b").inner_text()


def rows(page: Page, title: str) -> list[list[str]]:
    """The cells of the table under a heading, line by line."""
    section = page.locator("section", has=page.get_by_role("heading", name=title, exact=True))
    return [row.locator("td").all_inner_texts() for row in section.locator("tr").all() if row.locator("td").count()]


def test_it_says_what_is_stored_and_why_it_waits(browser: Browser, page_url: str) -> None:
    with opened(browser, page_url) as (page, watched):
        assert page.locator("#waits").inner_text() == "no stack runs here: start it with stillhouse up --detach"
        assert page.locator("#waits code").inner_text() == "stillhouse up --detach"
        assert [tile(page, label) for label in ("trajectories stored", "of them successes", "windows", "students")] == ["5", "3", "0", "0"]
        assert rows(page, "Trajectories by outcome") == [["success", "3"], ["failure", "1"], ["unknown", "1"]]
        assert rows(page, "Trajectories by status") == [["ended", "5"]]
        assert rows(page, "Students") == [] and page.get_by_text("none yet").count() == 2  # no windows either
        assert watched.errors == []
        page.get_by_role("link", name="JSON").click()
        assert json.loads(page.locator("body").inner_text())["trajectories"]["total"] == 5


def test_a_running_stack_is_shown_with_what_is_down_and_how_far_ingest_is(browser: Browser, tmp_path: Path, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/metrics").respond_with_data(METRICS)
    mine = records.ProcessId(pid=os.getpid(), started=create_time(os.getpid()))
    gone = records.ProcessId(pid=os.getpid(), started=1.0)
    addresses = {"ingest": httpserver.url_for("/metrics")}
    found = records.StackRecord(
        bootstrap_servers="127.0.0.1:1", supervisor=mine, pids={"broker": mine, "ingest": gone}, metrics=addresses, restarts={"ingest": 2}
    )
    records.write(tmp_path, found)
    with served(tmp_path) as server, opened(browser, server.url) as (page, watched):
        pid = str(os.getpid())
        assert rows(page, "Processes") == [["broker", pid, "up", "0"], ["ingest", pid, "down", "2"]]
        expect(page.locator("td.bad")).to_have_text("down")
        assert rows(page, "Ingest") == [["events not read yet", "1,234"], ["trajectories open", "7"]]
        expect(page.locator("#waits")).to_contain_text("ingest is being restarted")
    assert watched.errors == []


def test_it_follows_without_a_reload_and_says_when_it_cannot(browser: Browser, tmp_path: Path) -> None:
    store(tmp_path, "refund", "success")
    with served(tmp_path) as server, opened(browser, server.url, clock=True) as (page, _):
        page.evaluate("window.loadedOnce = true")
        store(tmp_path, "refund", "success", "failure")
        page.clock.run_for(TICK_MS)
        expect(page.locator(".tile b").first).to_have_text("3")
        expect(page.locator("#away")).to_be_hidden()
        server.stop()
        page.clock.run_for(TICK_MS)
        expect(page.locator("#away")).to_be_visible()
        assert tile(page, "trajectories stored") == "3"  # old figures are better than none
        server.start()
        page.clock.run_for(TICK_MS)
        expect(page.locator("#away")).to_be_hidden()
        assert page.evaluate("window.loadedOnce") is True


def test_what_a_task_is_called_stays_text(browser: Browser, tmp_path: Path) -> None:
    store(tmp_path, HOSTILE, "success")
    with served(tmp_path) as server, opened(browser, server.url, clock=True) as (page, watched):
        assert rows(page, "Trajectories by task family") == [[HOSTILE, "1"]]
        store(tmp_path, HOSTILE, "success")
        page.clock.run_for(TICK_MS)  # by the script as well
        expect(page.locator(".tile b").first).to_have_text("2")
        assert rows(page, "Trajectories by task family") == [[HOSTILE, "2"]]
        assert page.title() == "Stillhouse" and page.locator("main img, main script").count() == 0
    assert watched.errors == []


def test_a_script_that_came_through_all_the_same_would_not_run(browser: Browser, page_url: str) -> None:
    with opened(browser, page_url) as (page, watched):
        page.evaluate("""() => document.querySelector("main").innerHTML = `<img src="data:," onerror="document.title = 'owned'">`""")
        page.wait_for_function("document.querySelector('main img').complete")
        assert page.title() == "Stillhouse"
    assert any("Content Security Policy" in error for error in watched.errors)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_it_is_readable_on_phone_and_desktop_in_light_and_dark(browser: Browser, page_url: str, width: int, scheme: Scheme) -> None:
    with opened(browser, page_url, width=width, scheme=scheme) as (page, _):
        assert is_readable(page)
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


def test_without_scripts_the_page_is_whole_and_reloads_itself(browser: Browser, page_url: str) -> None:
    with opened(browser, page_url, scripts=False) as (page, watched):
        assert tile(page, "trajectories stored") == "5"
        assert page.locator("meta[http-equiv=refresh]").get_attribute("content") == "5"
    assert watched.errors == []


def test_a_state_that_cannot_be_read_is_said(browser: Browser, tmp_path: Path) -> None:
    student = tmp_path / "students" / "student-1-0123abcd"
    student.mkdir(parents=True)
    (student / "manifest.json").write_text("{", encoding="utf-8")
    with served(tmp_path) as server, opened(browser, server.url) as (page, _):
        assert "no readable manifest" in page.locator("body").inner_text() and student.name in page.locator("body").inner_text()
