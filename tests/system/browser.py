"""A headless Chromium for tests of the page: what it logged, what it asked for, and the page itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

CHARTS = (
    "tradeoff",
    "accuracy",
    "curves",
    "parallel",
    "heat",
    "importance",
    "consensus",
    "workers",
    "rungs",
    "steps",
    "cost",
)
"""Figures of the page, in order."""
MARKS = "g.mark-symbol path, g.mark-line path, g.mark-rect path, g.mark-rule line, g.mark-area path"


@dataclass
class Tab:
    """A page, with all that went wrong in it and every address it asked for."""

    page: Page
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def open(self, url: str) -> None:
        """Go there and wait until the decision is there."""
        self.page.goto(url)
        self.page.locator("#table button").first.wait_for(timeout=60_000)

    def marks(self, figure: str) -> int:
        """How many marks a chart has drawn, once it is there."""
        self.page.locator(f"#{figure}").scroll_into_view_if_needed()
        self.page.locator(f"#{figure} svg.marks").wait_for(timeout=60_000)
        return self.page.locator(f"#{figure} svg.marks").locator(MARKS).count()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, without a window."""
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"])
        try:
            yield found
        finally:
            found.close()


@contextmanager
def tab_of(browser: Browser, **context: Any) -> Iterator[Tab]:
    """A tab with a fresh profile; `context`: as `Browser.new_context` takes it."""
    profile = browser.new_context(**{"viewport": {"width": 1440, "height": 900}} | context)
    tab = Tab(profile.new_page())
    tab.page.on("console", lambda m: tab.problems.append(m.text) if m.type in ("error", "warning") else None)
    tab.page.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.page.on("request", lambda request: tab.requests.append(request.url))
    try:
        yield tab
    finally:
        profile.close()
