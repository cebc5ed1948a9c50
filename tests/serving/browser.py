"""Chromium without a window."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 20_000  # milliseconds until a page must show what is expected, on a busy machine
REQUIRED = "METAMORPH_REQUIRE_BROWSER"  # .ci/run sets it: there a browser that is absent is a fault


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser of this machine; without one a test is skipped, or fails where it is required."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        absent = pytest.fail if os.environ.get(REQUIRED) else pytest.skip
        absent("no Chromium here: apt-get install chromium")
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()
