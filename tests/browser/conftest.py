"""A real browser for the pages; tests that need it skip where there is none."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SOFTWARE_WEBGL = (
    "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
)  # fmt: skip
NO_WEBGL = ("--no-sandbox", "--disable-gpu", "--disable-3d-apis")
PATIENCE = 120_000
"""Milliseconds: a processor draws what a graphics card would."""


def chromium() -> str:
    """The browser's program; skips where it or Playwright is not installed."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = os.environ.get("DCAMT_BROWSER") or shutil.which("chromium") or shutil.which("chrome")
    if found is None or not Path(found).exists():
        pytest.skip("no Chromium: install it (apt-get install chromium), or name it DCAMT_BROWSER")
    return found


@pytest.fixture(scope="session")
def playwright() -> Iterator[Any]:
    chromium()
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="session")
def browser(playwright: Any) -> Iterator[Any]:
    launched = playwright.chromium.launch(executable_path=chromium(), args=SOFTWARE_WEBGL)
    yield launched
    launched.close()


@pytest.fixture(scope="session")
def plain_browser(playwright: Any) -> Iterator[Any]:
    """One without WebGL."""
    launched = playwright.chromium.launch(executable_path=chromium(), args=NO_WEBGL)
    yield launched
    launched.close()


class Watched:
    """A page with everything that it said, asked for or let a script do."""

    def __init__(self, browser: Any, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.page.set_default_timeout(PATIENCE)
        self.trouble: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self._hear(message.type, message.text))
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("dialog", lambda dialog: self._hear("error", f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self._note(request.url))

    def _hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.trouble.append(text)

    def _note(self, url: str) -> None:
        if not url.startswith(("data:", "blob:")):
            self.requests.append(url)

    def open(self, url: str) -> Any:
        """Go there and wait until the viewer shows a case."""
        self.page.goto(url)
        self.page.wait_for_selector("#viewer[data-shown]:not([data-shown=''])")
        return self.page


@pytest.fixture
def watch() -> Iterator[Any]:
    made: list[Watched] = []

    def make(browser: Any, **options: Any) -> Watched:
        made.append(Watched(browser, **{"viewport": {"width": 1000, "height": 900}, **options}))
        return made[-1]

    yield make
    for watched in made:
        watched.page.close()
