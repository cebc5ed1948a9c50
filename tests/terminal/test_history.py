"""What was typed is kept for the next time, for its owner alone."""

import os
import stat
from pathlib import Path

import pytest

from metamorph.terminal import typed_lines
from metamorph.terminal.history import LONGEST_LINE, MOST_LINES, History, history_path
from metamorph.terminal.typed_lines import TypedLines, complete


@pytest.fixture
def history(tmp_path):
    return History(tmp_path / "state" / "metamorph" / "chat_history")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_lines_come_back_in_their_order(history):
    assert history.read() == []
    for line in ("one", "zwölf", "/image ~/a b.png"):
        history.add(line)
    assert History(history.path).read() == ["one", "zwölf", "/image ~/a b.png"]


def test_only_its_owner_can_read_it(history):
    before = os.umask(0)
    try:
        history.add("secret")
        assert mode(history.path) == 0o600 and mode(history.path.parent) == 0o700
        history.path.chmod(0o644)
        history.read()
        assert mode(history.path) == 0o600
        for _ in range(3):
            history.path.write_text("line\n" * (MOST_LINES + 1))
            history.read()
        assert mode(history.path) == 0o600
    finally:
        os.umask(before)


def test_it_is_bounded(history):
    history.add("a" * (LONGEST_LINE + 1))
    history.add("")
    assert history.read() == []
    history.add("first")
    history.path.write_text("".join(f"{n}\n" for n in range(MOST_LINES + 5)))
    assert history.read() == [str(n) for n in range(5, MOST_LINES + 5)]
    assert len(history.path.read_text().splitlines()) == MOST_LINES
    assert os.listdir(history.path.parent) == ["chat_history"]


def test_bytes_that_are_no_text_do_no_harm(history):
    history.add("good")
    with history.path.open("ab") as file:
        file.write(b"\xff\x00\nmore\n")
    assert history.read()[0] == "good" and history.read()[-1] == "more"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"XDG_STATE_HOME": "/state"}, "/state/metamorph/chat_history"),
        ({"XDG_STATE_HOME": "relative"}, "/home/me/.local/state/metamorph/chat_history"),
        ({}, "/home/me/.local/state/metamorph/chat_history"),
    ],
)
def test_it_lies_where_state_lies(environment, expected, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert str(history_path(environment)) == expected


def test_a_history_that_cannot_be_kept_is_said_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr("builtins.input", lambda prompt: "hello")
    read_line = TypedLines(History(tmp_path / "file" / "chat_history"))
    assert [read_line("> "), read_line("> ")] == ["hello", "hello"]
    assert capsys.readouterr().err.count("no history is kept") == 1


def test_lines_are_added_but_blank_ones(history, monkeypatch):
    typed = iter(["first", "  ", "second"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    read_line = TypedLines(history)
    assert [read_line(">") for _ in range(3)] == ["first", "  ", "second"]
    assert history.read() == ["first", "second"]
    assert not (TypedLines(None).history)


@pytest.mark.parametrize(
    ("line", "word", "expected"),
    [
        ("/im", "/im", ["/image "]),
        ("/s", "/s", ["/save ", "/system ", "/seed ", "/set "]),
        ("/image pic", "pic", ["picture.png", "pictures/"]),
        ("/save x", "x", []),
        ("what is pic", "pic", []),
        ("/seed pic", "pic", []),
    ],
)
def test_tab_completes_commands_and_files(line, word, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("picture.png").touch()
    Path("pictures").mkdir()
    monkeypatch.setattr(typed_lines.readline, "get_line_buffer", lambda: line)
    found = [complete(word, number) for number in range(len(expected) + 1)]
    assert found == [*expected, None]
