"""Pages in a real Chromium: the system's, headless, driven by Playwright."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

PHONE, DESKTOP = 400, 1280
DEADLINE_MS = 60_000  # of each wait for a condition: machines differ, and are busy
Scheme = Literal["light", "dark"]

# The least contrast (WCAG 2: 1 to 21) between text and what lies under it, over all elements that show text.
CONTRAST = """() => {
  const parts = text => (text.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const under = element => {
    for (; element; element = element.parentElement) {
      const colour = parts(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const shown = [...document.body.querySelectorAll('*')].filter(e => e.checkVisibility()
    && [...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.textContent.trim()));
  return Math.min(...shown.map(e => {
    const both = [light(parts(getComputedStyle(e).color)), light(under(e))].sort((a, b) => b - a);
    return (both[0] + 0.05) / (both[1] + 0.05);
  }));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium for the synchronous tests of one module: while it is open, an asyncio test of the same thread could not run.

    Skips where there is none, except in CI, which installs it.
    """
    path = shutil.which("chromium")
    if path is None:
        reason = "no chromium on PATH (Debian: apt-get install chromium)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    expect.set_options(timeout=DEADLINE_MS)
    with sync_playwright() as playwright:
        # The sandbox needs privileges that root in a container lacks; only pages of these tests are opened.
        yield playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])


class Watched:
    """What went wrong on a page, and which addresses it asked for."""

    def __init__(self, page: Page) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("requestfailed", lambda request: self.errors.append(f"{request.url}: {request.failure}"))

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)


@contextmanager
def opened(
    browser: Browser, url: str, *, width: int = DESKTOP, scheme: Scheme = "light", clock: bool = False, scripts: bool = True
) -> Iterator[tuple[Page, Watched]]:
    """A page in a profile of its own; with `clock` its timers go only as the test says."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, java_script_enabled=scripts)
    context.set_default_timeout(DEADLINE_MS)
    page = context.new_page()
    watched = Watched(page)
    if clock:
        page.clock.install()
    try:
        page.goto(url)
        yield page, watched
    finally:
        context.close()


def is_readable(page: Page) -> bool:
    """No wider than its window, and all text with the contrast that WCAG's level AA asks of it."""
    fits = page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    return bool(fits) and page.evaluate(CONTRAST) >= 4.5
