"""`metamorph chat` over a pipe: answers on standard output, all else on the other, exit codes."""

import io
import os
import sys

import pytest
from PIL import Image

from metamorph.cli import chat
from metamorph.cli.command import main
from metamorph.errors import UserError
from tests.terminal.scripted import ScriptedAssistant, draw, finish, say


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the verb on lines; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TERM", "xterm-kitty")

    def run(text: str, *answers, arguments=(), decoder: bool = True) -> tuple[int, str, str]:
        assistant = ScriptedAssistant(*answers, decoder=decoder)
        monkeypatch.setattr(chat, "open_assistant", lambda arguments, slots: assistant)
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        run.assistant = assistant
        return main(["chat", *arguments]), *capsys.readouterr()

    return run


def test_one_question_a_line(run, tmp_path):
    answers = [[*say("Red.\n"), *finish()], [*say("See: "), *draw(), *finish()]]
    code, out, err = run("What colour?\nDraw it.\n", *answers)
    assert (code, out, err) == (0, "Red.\nSee: \n[picture: picture-1.png]\n", "")
    assert Image.open(tmp_path / "picture-1.png").size == (6, 4)
    assert not (tmp_path / "home").exists()  # no history


def test_nothing_asked_is_nothing_done(run):
    assert run("") == (0, "", "")


def test_a_command_that_cannot_be_done_is_an_error(run):
    code, out, err = run("What?\n/retyr\nMore?\n", [*say("This."), *finish()])
    assert code == 2 and out == "This.\n"
    assert err.startswith("metamorph: line 2: there is no command '/retyr'")
    assert err.count("\n") == 1


def test_so_is_a_question_that_cannot_be_answered(run):
    assert run("What?\n", UserError("it is too long"))[::2] == (
        2,
        "metamorph: line 1: it is too long\n",
    )


def test_options_reach_the_assistant(run, tmp_path):
    options = "--temperature 0.5 --seed 3 --system Brief. --reencode --save-to new/folder"
    run("Draw.\n", [*draw(), *finish()], arguments=options.split())
    [(messages, settings, reencode)] = run.assistant.asked
    assert messages[0].text == "Brief." and reencode
    assert (settings.sampling.temperature, settings.sampling.seed) == (0.5, 3)
    assert (tmp_path / "new/folder/picture-1.png").exists()


def test_pictures_that_are_asked_for_are_shown(run):
    _, out, _ = run("Draw.\n", [*draw(), *finish()], arguments=["--pictures", "sixel"])
    assert out.startswith("\x1bP0;1q")


def test_a_model_without_a_decoder_is_said(run):
    code, out, err = run("Hi.\n", [*say("Hi."), *finish()], decoder=False)
    assert (code, out) == (0, "Hi.\n")
    assert "has no decoder/" in err and err.count("\n") == 1


def test_text_that_the_output_cannot_hold_is_written_out(run, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", out)
    code, _, _ = run("Hi.\n", [*say("ünd"), *finish()])
    assert code == 0 and out.buffer.getvalue() == b"\\xfcnd\n"


def test_a_closed_standard_input_is_said(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["chat"]) == 2 and "standard input is closed" in capsys.readouterr().err


def test_a_folder_that_is_none_is_said_first(run, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = run("Hi.\n", arguments=["--save-to", "file"])
    assert code == 2 and "--save-to: file is a file" in err


def test_it_ends_quietly_once_nobody_reads(run, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        code, _, err = run("a\nb\n", [*say("one"), *finish()], [*say("two"), *finish()])
    assert (code, err) == (141, "")
    assert len(run.assistant.asked) == 1
