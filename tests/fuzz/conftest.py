"""Prints at the end of a run what became of the broken inputs of each target."""

import pytest

from tests.fuzz.harness import Attack, hunt


@pytest.fixture
def fuzzed(request, tmp_path):
    """`fuzzed(attack, cases)`: `hunt` with the sound inputs that the test wrote to `tmp_path`."""

    def run(attack: Attack, cases: int, folder=tmp_path) -> None:
        report = hunt(request.node.nodeid, attack, folder, cases)
        request.node.user_properties.append(("fuzz", report.text()))

    return run


def pytest_terminal_summary(terminalreporter) -> None:
    lines = [
        text
        for report in terminalreporter.getreports("passed")
        if report.when == "call"
        for name, text in report.user_properties
        if name == "fuzz"
    ]
    if lines:
        terminalreporter.section("broken inputs")
        for line in lines:
            terminalreporter.write_line(line)
