"""Pictures within a terminal: which way it shows them, and that what is written is the picture."""

import base64
import io
import os
import pty
import re
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from metamorph.errors import UserError
from metamorph.terminal import graphics
from metamorph.terminal.device import ScreenSize, device_attributes
from metamorph.terminal.graphics import by_environment, choose, fitted, sequences, through_tmux
from metamorph.terminal.sixel import sixels

SIZE = ScreenSize(80, 24, 640, 384)


@st.composite
def pictures(draw) -> Image.Image:
    width, height = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    colours = draw(st.integers(1, 300))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    palette = rng.integers(0, 256, (colours, 3), dtype=np.uint8)
    return Image.fromarray(palette[rng.integers(0, colours, (height, width))])


def of_sixels(text: str) -> np.ndarray:
    """The pixels [height, width, 3] that a terminal shows, in percent; -1 where none is set."""
    body = re.fullmatch(r"\x1bP[\d;]*q(.*)\x1b\\", text, re.DOTALL)[1]
    _, _, width, height = map(int, re.match(r'"(\d+);(\d+);(\d+);(\d+)', body).groups())
    shown = np.full((height + 6, width, 3), -1)
    colours, colour, x, y = {}, None, 0, 0
    token = r'"[\d;]+|#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|!(\d+)([?-~])|([?-~])|([$-])'
    end = 0
    for found in re.finditer(token, body):
        assert found.start() == end, "something between that means nothing"
        end = found.end()
        entry, r, g, b, chosen, times, repeated, single, move = found.groups()
        if entry:
            colours[int(entry)] = int(r), int(g), int(b)
        elif chosen:
            colour = colours[int(chosen)]
        elif move:
            x, y = 0, y + (6 if move == "-" else 0)
        elif repeated or single:
            bits = ord(repeated or single) - 63
            for _ in range(int(times or 1)):
                for row in range(6):
                    if bits >> row & 1:
                        assert (shown[y + row, x] == -1).all(), "one pixel in two colours"
                        shown[y + row, x] = colour
                x += 1
    assert end == len(body) and (shown[height:] == -1).all()
    return shown[:height]


@settings(max_examples=25, deadline=None)
@given(pictures())
def test_sixels_are_the_picture_in_its_own_palette(picture):
    quantized = np.asarray(picture.quantize(256).convert("RGB"), np.float64)
    shown = of_sixels(sixels(picture))
    assert np.abs(shown - quantized / 2.55).max() <= 0.5


def test_sixels_of_a_plain_picture_are_short():
    assert len(sixels(Image.new("RGB", (500, 600), "red"))) < 1200


def kitty_pictures(text: str) -> Image.Image:
    commands = re.findall(r"\x1b_G([^;]*);([A-Za-z0-9+/=]*)\x1b\\", text)
    assert "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in commands) == text
    assert commands[0][0].startswith("a=T,f=100,q=2,m=")
    more = [keys.rpartition("m=")[2] for keys, _ in commands]
    assert more == ["1"] * (len(commands) - 1) + ["0"]
    assert all(len(data) == 4096 for _, data in commands[:-1])
    return Image.open(io.BytesIO(base64.b64decode("".join(data for _, data in commands))))


def iterm_picture(text: str) -> Image.Image:
    options, data = re.fullmatch(r"\x1b]1337;File=([^:]*):([A-Za-z0-9+/=]*)\x07", text).groups()
    named = dict(option.split("=") for option in options.split(";"))
    content = base64.b64decode(data)
    picture = Image.open(io.BytesIO(content))
    assert named["inline"] == "1" and int(named["size"]) == len(content)
    assert (named["width"], named["height"]) == tuple(f"{side}px" for side in picture.size)
    return picture


@settings(max_examples=20, deadline=None)
@given(pictures(), st.sampled_from([1, 7]))
def test_kitty_and_iterm_get_the_pixels(picture, times):
    picture = picture.resize((picture.width * times, picture.height * times), 0)
    for name, read in (("kitty", kitty_pictures), ("iterm", iterm_picture)):
        shown = read("".join(sequences(picture, name)))
        assert shown.tobytes() == picture.tobytes() and shown.size == picture.size
    assert sequences(picture, "none") == []


def test_a_large_picture_goes_to_kitty_in_chunks():
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    written = sequences(Image.fromarray(noise), "kitty")
    assert len(written) > 5 and max(map(len, written)) < 4200
    assert kitty_pictures("".join(written)).tobytes() == noise.tobytes()


def test_tmux_hands_on_what_it_is_told_to():
    [sequence] = sequences(Image.new("RGB", (2, 2)), "kitty")
    wrapped = through_tmux(sequence)
    inside = re.fullmatch(r"\x1bPtmux;((?:\x1b\x1b|[^\x1b])*)\x1b\\", wrapped)[1]
    assert inside.replace("\x1b\x1b", "\x1b") == sequence


@settings(deadline=None)
@given(
    st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 300), st.integers(1, 100),
    st.integers(1, 4000), st.integers(1, 4000),
)  # fmt: skip
def test_pictures_fit_whatever_the_screen(width, height, columns, rows, screen_w, screen_h):
    shown = fitted(Image.new("L", (width, height)), ScreenSize(columns, rows, screen_w, screen_h))
    assert 1 <= shown.width <= screen_w and 1 <= shown.height <= max(screen_h, 1)
    assert max(shown.size) <= 1024


@pytest.mark.parametrize(
    ("picture", "shown"),
    [
        ((64, 64), (256, 256)),  # small ones are enlarged
        ((300, 200), (300, 200)),
        ((1280, 64), (640, 32)),  # the width of the screen
        ((64, 1000), (22, 352)),  # its height without two lines
    ],
)
def test_how_large_a_picture_is_shown(picture, shown):
    assert fitted(Image.new("RGB", picture), SIZE).size == shown


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM": "xterm", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm", "KONSOLE_VERSION": "220401"}, "kitty"),
        ({"TERM": "xterm", "KONSOLE_VERSION": "210800"}, None),
        ({"TERM": "xterm", "TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "xterm", "WEZTERM_PANE": "0"}, "iterm"),
        ({"TERM": "xterm", "TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM": "xterm", "LC_TERMINAL": "iTerm2"}, "iterm"),  # as ssh hands it on
        ({"TERM": "xterm"}, None),
        ({"TERM": "foot"}, None),
        ({"TERM": "xterm", "TERM_PROGRAM": "vscode", "KITTY_WINDOW_ID": "1"}, None),
        ({"TERM": "dumb", "KITTY_WINDOW_ID": "1"}, "none"),
        ({}, "none"),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1"}, None),
        ({"TERM": "screen", "TMUX": "/tmp/x", "LC_TERMINAL": "iTerm2"}, None),
        ({"TERM": "xterm-kitty", "STY": "1.pts"}, None),
    ],
)
def test_what_variables_say_of_a_terminal(environment, expected):
    assert by_environment(environment) == expected


@pytest.mark.parametrize(
    ("wanted", "environment", "attributes", "expected"),
    [
        ("auto", {"TERM": "xterm-kitty"}, None, ("none", False)),  # over a pipe
        ("auto", {"TERM": "xterm-kitty"}, [], ("kitty", False)),
        ("auto", {"TERM": "xterm"}, [64, 4], ("sixel", False)),
        ("auto", {"TERM": "xterm"}, [64, 22], ("none", False)),
        ("auto", {"TERM": "dumb"}, [4], ("none", False)),
        ("auto", {"TERM": "screen", "TMUX": "x"}, [1, 2, 4], ("sixel", False)),
        ("auto", {"TERM": "screen", "TMUX": "x"}, [1, 2], ("none", False)),
        ("auto", {"TERM": "screen", "STY": "x"}, [1, 2], ("none", False)),
        ("kitty", {"TERM": "xterm"}, None, ("kitty", False)),
        ("kitty", {"TERM": "screen", "TMUX": "x"}, [4], ("kitty", True)),
        ("sixel", {"TERM": "screen", "TMUX": "x"}, [4], ("sixel", False)),
        ("sixel", {"TERM": "screen", "TMUX": "x"}, [], ("sixel", True)),
        ("none", {"TERM": "screen", "STY": "x"}, [], ("none", False)),
    ],
)
def test_the_way_that_is_chosen(monkeypatch, wanted, environment, attributes, expected):
    monkeypatch.setattr(graphics, "device_attributes", lambda *terminal: attributes)
    terminal = None if attributes is None else (0, 1)
    assert choose(wanted, environment, terminal) == expected


def test_screen_passes_nothing_on():
    with pytest.raises(UserError, match="GNU screen does not pass pictures on"):
        choose("sixel", {"TERM": "screen", "STY": "1.pts"}, (0, 1))


@pytest.fixture
def terminal():
    """Both ends of a pseudo-terminal: what the person's side sees, and ours."""
    person, ours = pty.openpty()
    yield person, ours
    os.close(person)
    os.close(ours)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"\x1b[?62;4;22c", [62, 4, 22]),
        (b"\x1b[?6c", [6]),
        (b"\x1b[?c", []),
        (b"\x1b[?62;4", []),  # not whole in time
        (b"", []),
    ],
)
def test_a_terminal_is_asked_what_it_can(terminal, answer, expected):
    person, ours = terminal

    def reply():
        assert os.read(person, 3) == b"\x1b[c"
        os.write(person, answer)

    thread = threading.Thread(target=reply)
    thread.start()
    assert device_attributes(ours, ours, seconds=0.05 if not expected else 10) == expected
    thread.join()


def test_what_is_typed_ahead_is_not_lost(terminal):
    person, ours = terminal
    os.write(person, b"hello\n")
    assert device_attributes(ours, ours, seconds=10) == []
    assert os.read(ours, 100) == b"hello\n"


def test_the_size_of_what_is_no_terminal(tmp_path):
    with (tmp_path / "file").open("w") as file:
        assert ScreenSize.of(file) == ScreenSize(80, 24, 640, 384)
