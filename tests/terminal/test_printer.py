"""What is seen of an answer, event by event."""

import base64
import io
import re
import resource

import pytest
from PIL import Image

from metamorph.generation.events import ImageStarted
from metamorph.generation.picture_files import drawing_of
from metamorph.terminal import printer
from metamorph.terminal.device import ScreenSize
from metamorph.terminal.printer import AnswerPrinter, Screen, write_new
from tests.terminal.scripted import FEATURES, TOKENS, WIDTH, draw, finish, say


class OnScreen(Screen):
    columns = 80

    def size(self):
        return ScreenSize(self.columns, 24, 640, 384)


@pytest.fixture
def screen(tmp_path):
    return OnScreen(io.StringIO(), tmp_path)


def shown(screen: Screen, events, *, can_draw: bool = True) -> str:
    printing = AnswerPrinter(screen, can_draw=can_draw)
    for event in events:
        printing.print(event)
    return screen.out.getvalue()


def as_seen(written: str) -> list[str]:
    """The lines of a screen on which this was written."""
    lines = [[]]
    column = 0
    for character in written:
        if character == "\n":
            lines.append([])
            column = 0
        elif character == "\r":
            column = 0
        else:
            lines[-1][column : column + 1] = character
            column += 1
    return ["".join(line).rstrip() for line in lines]


def test_text_is_written_as_it_comes(screen):
    printing = AnswerPrinter(screen, can_draw=True)
    for piece, so_far in (("One ", "One "), ("two", "One two"), ("\n", "One two\n")):
        printing.print(say(piece)[0])
        assert screen.out.getvalue() == so_far
    printing.print(finish()[0])
    assert screen.out.getvalue() == "One two\n"  # no line that is empty


def test_pictures_stand_where_they_belong(screen, tmp_path):
    first, second = draw(0, "red"), draw(1, "blue")
    # The model goes on with text, and another picture, while the first one is drawn.
    events = [*say("See"), *first[:-2], *say(" and ", "this:"), *second[:-1], *first[-2:]]
    written = shown(screen, [*events, second[-1], *say("\nDone."), *finish()])
    assert written.splitlines() == [
        "See",
        f"[picture: {tmp_path}/picture-1.png]",
        " and this:",
        f"[picture: {tmp_path}/picture-2.png]",
        "",
        "Done.",
    ]
    assert Image.open(tmp_path / "picture-2.png").getpixel((0, 0)) == (0, 0, 255)


def test_a_saved_picture_holds_its_features(screen, tmp_path):
    shown(screen, [*draw(), *finish()])
    content = (tmp_path / "picture-1.png").read_bytes()
    assert drawing_of(content, TOKENS, WIDTH, 1000).features.equal(FEATURES)


def test_progress_is_one_line_that_goes_again(screen, tmp_path):
    screen.shows_progress = True
    events = [*say("Look: "), *draw(steps=3)]
    seen = []
    printing = AnswerPrinter(screen, can_draw=True)
    for event in events:
        printing.print(event)
        seen.append(as_seen(screen.out.getvalue())[1:])
    lines = [line for [line] in seen[1:-1]]
    assert lines[0] == "picture 1: 0 of 4 tokens" and "picture 1: 4 of 4 tokens" in lines
    assert lines[-1] == "picture 1: drawing, step 3 of 3"
    assert seen[-1] == [f"[picture: {tmp_path}/picture-1.png]", ""]


def test_progress_is_of_the_picture_that_the_rest_waits_for(screen):
    screen.shows_progress = True
    first, second = draw(0), draw(1)
    written = shown(screen, [*first[:-1], *second[:-1]])
    assert "picture 2" not in written


@pytest.mark.parametrize(("columns", "used"), [(10, 7), (4, 1), (3, 0), (1, 0)])
def test_progress_fits_a_narrow_screen(screen, columns, used):
    screen.shows_progress, screen.columns = True, columns
    lines = re.split("[\r\n]", shown(screen, draw()[:-1]))
    assert max(len(line) for line in lines) == used  # and two more may be echoed


def test_a_line_of_progress_goes_when_an_answer_ends_early(screen):
    screen.shows_progress = True
    printing = AnswerPrinter(screen, can_draw=True)
    printing.print(ImageStarted(0, TOKENS))
    screen.out.write("^C")  # by the terminal
    printing.print(*finish("cancelled"))
    assert as_seen(screen.out.getvalue()) == ["[picture: not drawn]", ""]


def test_over_a_pipe_no_line_is_written_twice(screen):
    assert not set(shown(screen, [*say("a"), *draw(), *finish()])) & {"\r", "\x1b"}


def test_a_model_cannot_speak_to_the_terminal(screen):
    assert shown(screen, say("\x1b]52;c;aGk=\x07")) == "\\x1b]52;c;aGk=\\x07"


def test_pictures_are_shown_within_the_terminal(screen):
    screen.graphics = "iterm"
    written = shown(screen, [*draw(colour="lime"), *finish()])
    [data] = re.findall(r"\x1b]1337;File=[^:]*:([^\x07]*)\x07\n\[picture", written)
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert picture.size == (256, 170) and picture.getpixel((9, 9)) == (0, 255, 0)
    screen.graphics, screen.in_tmux, screen.out = "kitty", True, io.StringIO()
    assert shown(screen, [*draw(), *finish()]).startswith("\x1bPtmux;\x1b\x1b_Ga=T")


def test_undrawn_pictures_are_said(screen):
    events = [event for event in draw() if type(event).__name__.startswith("Image")][:-1]
    written = shown(screen, [*events, *say("then"), *finish()], can_draw=False)
    assert written == "[picture: not drawn]\nthen\n"


def test_a_full_disk_costs_no_answer(screen, monkeypatch):
    def full(folder, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(printer, "write_new", full)
    printing = AnswerPrinter(screen, can_draw=True)
    for event in [*draw(), *say("on"), *finish()]:
        printing.print(event)
    assert screen.out.getvalue() == "[picture: not saved]\non\n"
    assert "could not be saved" in printing.problem and "No space left" in printing.problem


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "picture-1.png").write_text("mine")
    (tmp_path / "picture-2.png").symlink_to("nowhere")
    assert write_new(tmp_path, b"new") == tmp_path / "picture-3.png"
    assert (tmp_path / "picture-1.png").read_text() == "mine"


def test_half_a_picture_is_not_left(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # as if the disk were full
    try:
        with pytest.raises(OSError):
            write_new(tmp_path, bytes(200))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
