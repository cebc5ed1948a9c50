"""Fixtures of the page: a browser, and a server whose answers a test dictates, for each file; and
what the soak says at the end of a run."""

import pytest
from playwright.sync_api import Page

from metamorph.serving.app import create_app
from tests.serving.browser import PATIENCE, chromium
from tests.serving.puppet import Puppet
from tests.serving.running import running
from tests.serving.scripted import ScriptedDecoder, scripted_served

EXPECTED = "Failed to load resource"  # what Chromium logs of a refusal


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def puppet():
    return Puppet()


@pytest.fixture(scope="module")
def address(puppet):
    app = create_app(puppet, scripted_served(), decoder=ScriptedDecoder())
    with running(app) as address:
        yield address


@pytest.fixture(scope="module")
def faults():
    """What went wrong in scripts of the page."""
    return []


def watched(page: Page, faults: list[str]) -> Page:
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text))
    return page


@pytest.fixture(scope="module")
def reused(browser, faults):
    return watched(browser.new_page(), faults)


@pytest.fixture
def page(reused, address, faults):
    """The page as a browser shows it that was never there before."""
    reused.goto(address)
    yield reused
    reused.unroute_all()
    reused.evaluate("localStorage.clear(); sessionStorage.clear()")
    assert [fault for fault in faults if EXPECTED not in fault] == []


@pytest.fixture
def open_page(browser, address, faults):
    """The same with Playwright's options of a browser context."""
    contexts = []

    def open_page(**options) -> Page:
        contexts.append(browser.new_context(**options))
        page = watched(contexts[-1].new_page(), faults)
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [fault for fault in faults if EXPECTED not in fault] == []


def pytest_terminal_summary(terminalreporter) -> None:
    """What the soak has measured."""
    for report in terminalreporter.getreports("passed"):
        for name, text in report.user_properties if report.when == "call" else ():
            if name == "soak":
                terminalreporter.section("soak")
                terminalreporter.write_line(text)
