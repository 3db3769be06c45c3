"""The system's Chromium, which the tests of this folder drive."""

import os
import shutil
import time

import pytest

CHROMIUM = os.environ.get("MOXIN_CHROMIUM") or next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
NEEDS_CHROMIUM = pytest.mark.skipif(
    CHROMIUM is None,
    reason="no Chromium here: apt-get install chromium, or set MOXIN_CHROMIUM to its path",
)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def wait_until(page, expression, seconds=30.0):
    """Wait until this JavaScript expression is true of the page, asked from here again and again.

    Playwright's `wait_for_function` asks from a timer inside the page, where a Content Security
    Policy without 'unsafe-eval' forbids it: it holds only if the first look already finds it true.

    Raises AssertionError with the expression if it is never true.
    """
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"not true within {seconds:.0f} s: {expression}"
        page.wait_for_timeout(20)
