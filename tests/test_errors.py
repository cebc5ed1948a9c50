"""Messages are one line of bounded length, whatever a user's file holds."""

import pickle

from hypothesis import given
from hypothesis import strategies as st

from metamorph.errors import LONGEST_MESSAGE, SampleError, UserError, in_words, one_line, shown


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@given(st.text(max_size=3 * LONGEST_MESSAGE))
def test_a_message_is_one_printable_line(message):
    line = one_line(message)
    assert line.isprintable()
    assert len(line) < 10 * LONGEST_MESSAGE + 10  # an escaped character takes up to ten
    if message.isprintable() and len(message) <= LONGEST_MESSAGE:
        assert line == message


def test_a_long_message_keeps_what_was_wrong_and_what_was_expected():
    message = f"my.yaml: key 'seed' got {'x' * 10**6}; it needs a whole number"
    assert one_line(message).startswith("my.yaml: key 'seed' got xxx")
    assert one_line(message).endswith("xxx; it needs a whole number")


def test_line_ends_half_characters_and_codes_of_terminals_are_written_out():
    assert one_line("a\n  b\ud800 \x1b[31m") == r"a b\ud800 \x1b[31m"


def test_both_errors_speak_so_and_pass_between_processes():
    for error in (UserError("a\nb"), SampleError("cause", "a\nb")):
        assert str(error) == str(pickle.loads(pickle.dumps(error))) == "a b"


def test_a_value_is_shown_at_bounded_length():
    assert shown({"a": [1, "b"]}) == "{'a': [1, 'b']}"
    for value in ("x" * 10**6, 16**9999, 10**400, nested(9000), list(range(9000)), {1: nested(9)}):
        assert len(shown(value)) < 250


def test_a_librarys_error_is_told_in_words():
    assert in_words(ValueError("bad\n  footer")) == "bad footer"
    assert in_words(ValueError("for 'act': TypeError: expected str")) == "for 'act': expected str"
    unspeakable = "a field is missing or holds a value of another kind"
    for error in (KeyError("x"), AttributeError("'int' object has no attribute 'pop'"), OSError()):
        assert in_words(error) == unspeakable
