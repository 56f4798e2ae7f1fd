"""A real browser on the web page. What it asks for and what it complains about is watched all the time."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

PATIENCE = 30
"""Seconds until something counts as not happening: machines that run tests are busy."""

# The browser's own word for what the Content-Security-Policy forbade.
TELL_VIOLATIONS = """
addEventListener("securitypolicyviolation", (event) => console.error("CSP", event.violatedDirective, event.blockedURI));
"""


@contextlib.contextmanager
def open_browser() -> Iterator[Any]:
    """A playwright Browser: FREEHOLD_CHROMIUM, or the chromium on the PATH. Skips the test where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'freehold[browser]'")
    found = os.environ.get("FREEHOLD_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("needs a Chromium: apt install chromium, or its path in FREEHOLD_CHROMIUM")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def open_page(browser: Any, url: str, *, expected: str = "", **options: Any) -> Iterator[Any]:
    """A playwright Page at `url`, in a profile of its own.

    At the end: it asked for nothing but what is at `url`, and no script failed and nothing was complained about but
    what the pattern `expected` matches. options: of the browser's context.
    """
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(PATIENCE * 1000)
    asked: list[str] = []
    problems: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    context.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
    context.on("weberror", lambda error: problems.append(str(error.error)))
    page.add_init_script(TELL_VIOLATIONS)
    try:
        page.goto(url)
        yield page
        assert [other for other in asked if not other.startswith((url, "data:"))] == []
        assert [text for text in problems if not (expected and re.search(expected, text))] == []
    finally:
        context.close()


def say(page: Any, text: str) -> None:
    """Write a message and send it with the keyboard."""
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def wait(page: Any, expression: str) -> None:
    """Wait until an expression is true in the page; playwright's own way would evaluate text inside the page's policy,
    which forbids that."""
    deadline = time.monotonic() + PATIENCE
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"not within {PATIENCE} seconds: {expression}"
        page.wait_for_timeout(20)


def answered(page: Any, number: int = 1) -> Any:
    """The answer number `number` (from 1), once it is complete."""
    page.locator(".message.answer").nth(number - 1).locator(".state.done").wait_for(state="attached")
    page.locator("#send").wait_for()
    return page.locator(".message.answer").nth(number - 1)


def drop(page: Any, *files: tuple[str, str, str]) -> None:
    """Drop files (name, media type, text) onto the page."""
    page.evaluate(
        """(files) => {
          const data = new DataTransfer();
          for (const [name, type, text] of files) data.items.add(new File([text], name, { type }));
          for (const kind of ["dragover", "drop"]) {
            document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
          }
        }""",
        [list(file) for file in files],
    )
