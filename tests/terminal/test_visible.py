"""What a model says must not be obeyed by the terminal that shows it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metamorph.terminal.visible import visible

ANY = st.text(st.characters(codec=None, exclude_categories=()))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b31m", "\\x9b31m"),  # the same, as one character
        ("over\rwritten", "over\\rwritten"),
        ("back\x08space", "back\\x08space"),
        ("\u202eesrever", "\\u202eesrever"),
        ("half \ud800", "half \\ud800"),
        ("a\tb\nc", "a\tb\nc"),
        ("naïve \u00a0 \u4f60\u597d", "naïve \u00a0 \u4f60\u597d"),
        ("\U0001f469\u200d\U0001f680", "\U0001f469\u200d\U0001f680"),  # joined to one sign
    ],
)
def test_what_a_terminal_obeys_is_written_out(text, shown):
    assert visible(text) == shown


@given(ANY)
def test_no_control_character_comes_through(text):
    found = {c for c in visible(text) if ord(c) < 32 or 127 <= ord(c) < 160}
    assert found <= {"\n", "\t"}
    visible(text).encode()


@given(ANY, ANY)
def test_pieces_may_be_shown_one_by_one(first, second):
    assert visible(first) + visible(second) == visible(first + second)
