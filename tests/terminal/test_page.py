"""docs/chat.md says what the chat does."""

from metamorph.terminal.commands import help_lines
from metamorph.terminal.keys import KEYS
from tests.pages import ROOT, blocks

PAGE = ROOT / "docs/chat.md"


def test_the_page_lists_the_commands_as_help_does():
    assert blocks(PAGE, "text")[0].splitlines() == help_lines()


def test_the_page_names_every_setting():
    assert all(f"`{key}`" in PAGE.read_text() for key in KEYS)
