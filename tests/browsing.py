"""A real browser for tests of pages: headless Chromium, driven by playwright."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextlib.contextmanager
def open_browser() -> Iterator[Any]:
    """Start Chromium. Tests are skipped, with the reason, where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium is installed. On Debian: apt-get install chromium")
    with api.sync_playwright() as playwright:
        # The sandbox needs a user other than root, or namespaces that many containers do not have.
        args = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=found, args=args)
        yield browser
        browser.close()


class Tab:
    """A page that is open, and everything that went wrong in it."""

    def __init__(self, browser: Any, url: str, *, width: int = 1200, scheme: str = "light") -> None:
        """Open a page, and wait until it is complete."""
        self._context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
        self.page = self._context.new_page()
        self.troubles: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.troubles.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)
        self.page.wait_for_selector("html[data-ready=true]")

    def text(self, selector: str) -> str:
        """Return the text of the one element that a selector finds."""
        return str(self.page.locator(selector).inner_text())

    def raw(self, selector: str) -> str:
        """Return the text of an element as it was set, also where it is not shown."""
        return str(self.page.locator(selector).text_content())

    def wait_for(self, selector: str, text: str) -> None:
        """Wait until an element has a text. (``wait_for_function`` needs eval, which the policy forbids.)"""
        self.page.locator(selector).filter(has_text=re.compile(f"^{re.escape(text)}")).wait_for()

    def close(self) -> None:
        """Close it."""
        self._context.close()
