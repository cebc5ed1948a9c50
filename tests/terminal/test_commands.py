"""Lines to questions and commands."""

import io
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metamorph.errors import UserError
from metamorph.terminal.commands import (
    COMMANDS,
    Command,
    Question,
    help_lines,
    one_path,
    parse_line,
    path_of,
    whole_number,
    words,
)
from metamorph.terminal.entries import PipedLines, read_entry


def entries_of(text: str) -> list[Command | Question]:
    lines, found = PipedLines(io.StringIO(text)), []
    while True:
        try:
            found.append(read_entry(lines))
        except EOFError:
            return found


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        ("What is it?", Question("What is it?")),
        ("  what\t", Question("what")),
        ("", Question("")),
        ("//path is a question", Question("/path is a question")),
        ("/undo", Command("undo")),
        (" /undo ", Command("undo")),
        ("/image a.png", Command("image", "a.png")),
        ("/system  be  brief ", Command("system", "be  brief")),
    ],
)
def test_a_line_is_a_question_or_a_command(line, entry):
    assert parse_line(line) == entry


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/imge a.png", "no command '/imge', the nearest is '/image'"),
        ("/Undo", "the nearest is '/undo'"),
        ("/", "no command '/'"),
        ("/ image", "no command '/'"),
        ("/etc/passwd is what?", "a question that begins with / is written with two"),
        ("/undo 2", "/undo: expected nothing behind it, got '2'"),
    ],
)
def test_other_commands_name_the_nearest(line, expected):
    with pytest.raises(UserError, match=expected):
        parse_line(line)


@given(st.text())
def test_every_line_is_an_entry_or_a_sentence(line):
    try:
        entry = parse_line(line)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(entry, Question) or entry.name in COMMANDS


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1)))
def test_quoted_names_are_taken_as_they_are(names):
    command = Command("image", shlex.join(names))
    if names:
        assert words(command) == names
    else:
        with pytest.raises(UserError, match="/image: expected FILE"):
            words(command)


def test_names_of_files(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(one_path(Command("save", r"~/my\ talk.json"))) == "/home/somebody/my talk.json"
    assert str(one_path(Command("save", "'~/a b'"))) == "/home/somebody/a b"
    with pytest.raises(UserError, match="/save: no closing quotation"):
        one_path(Command("save", '"a'))
    with pytest.raises(UserError, match="expected one file, got 2 words"):
        one_path(Command("save", "a b"))
    with pytest.raises(UserError, match="no such user"):
        path_of("~nobody-at-all/x")


@pytest.mark.parametrize("word", ["0", "-1", "1.5", "many", "11", "\u0663", "9" * 5000, "1_0"])
def test_numbers_have_limits(word):
    with pytest.raises(UserError, match="/video: expected a whole number, from 1 to 10"):
        whole_number(Command("video"), word, 1, 10)


def test_help_names_every_command():
    lines = help_lines()
    assert [line.split()[0] for line in lines] == [f"/{name}" for name in COMMANDS]


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("one\ntwo\n", [Question("one"), Question("two")]),
        ("no end of line", [Question("no end of line")]),
        ("of Windows\r\n", [Question("of Windows")]),
        ("\ufefffirst\n\ufeffsecond\n", [Question("first"), Question("\ufeffsecond")]),
        ("a \\\nb\\\nc\nd", [Question("a \nb\nc"), Question("d")]),
        ("left open \\", [Question("left open")]),
        ("/system a\\\nb", [Command("system", "a\nb")]),
        ('"""one"""\n', [Question("one")]),
        ('"""\n/undo\n\n  b\\\n"""\nc', [Question("/undo\n\n  b\\"), Question("c")]),
        ('"""a\nb"""', [Question("a\nb")]),
        ('""""""', [Question("")]),
    ],
)
def test_entries_may_take_several_lines(text, entries):
    assert entries_of(text) == entries


def test_quotes_that_are_never_closed():
    with pytest.raises(UserError, match='""" is never closed'):
        entries_of('"""a\nb\n')


def test_what_is_not_text_or_far_too_long_is_refused():
    for content in (b"caf\xe9\n", b"\xff"):
        for errors in ("strict", "surrogateescape"):  # as Python opens stdin in the locale C
            lines = PipedLines(io.TextIOWrapper(io.BytesIO(content), "utf-8", errors))
            with pytest.raises(UserError, match="not UTF-8"):
                lines("")
    with pytest.raises(UserError, match="longer than"):
        entries_of("a" * 2**20)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=20)))
def test_a_stream_of_any_lines_ends(lines):
    text = "\n".join(lines)
    try:
        found = entries_of(text)
    except UserError:
        return
    assert len(found) <= len(lines)
