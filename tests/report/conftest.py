"""A real browser for the tests of what people look at."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
REMEDY = "get one with: apt-get install chromium; pip install playwright (the extra 'test' has it)"


@dataclass(slots=True)
class Seen:
    """What a page did while it was looked at.

    Parameters
    ----------
    page : playwright.sync_api.Page
    requests : list of str
        URLs, its own first.
    messages : list of str
        Of the console, of errors that nobody caught, and of dialogs.
    blocked : list of str
        Requests that were not made, and why.
    """

    page: Any
    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).first.inner_text())

    def count(self, selector: str) -> int:
        return int(self.page.locator(selector).count())

    def nodes(self) -> int:
        """Return how many elements the document has."""
        return self.count("*")

    def overflow(self) -> int:
        """Return by how many pixels the document is wider than its window."""
        return int(
            self.page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
        )

    def background(self) -> str:
        return str(self.page.evaluate("getComputedStyle(document.body).backgroundColor"))


def without(reason: str) -> None:
    """Skip; where all tests have to run, fail."""
    required = os.environ.get("FEATURESTORE_TEST_BROWSER") == "required"
    if required or os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"{reason}; {REMEDY}")
    pytest.skip(f"{reason}; {REMEDY}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser without window; of one module, as its event loop stands in the way of others'."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        without("no browser is installed")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        without("playwright is not installed")
    with sync_playwright() as driver:
        # The sandbox needs rights that a container does not have; pages here are the project's own.
        started = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def look(browser: Any) -> Callable[..., Any]:
    """Return what opens a file and says afterwards what the page did; its options are a context's."""

    @contextmanager
    def opened(path: Path, **options: Any) -> Iterator[Seen]:
        size = {"viewport": {"width": 1200, "height": 900}}
        context = browser.new_context(**{**size, **options})
        seen = Seen(context.new_page())
        seen.page.on("request", lambda one: seen.requests.append(one.url))
        seen.page.on("requestfailed", lambda one: seen.blocked.append(f"{one.url}: {one.failure}"))
        seen.page.on("console", lambda one: seen.messages.append(one.text))
        seen.page.on("pageerror", lambda one: seen.messages.append(str(one)))

        def refuse(dialog: Any) -> None:
            seen.messages.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        seen.page.on("dialog", refuse)
        seen.page.goto(path.as_uri())
        yield seen
        context.close()
        assert seen.requests == [path.as_uri()]
        assert seen.messages == []

    return opened
