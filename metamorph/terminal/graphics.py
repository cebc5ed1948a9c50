"""Pictures within a terminal: what it shows them with, and how that is written.

- *kitty*: the graphics protocol of kitty, ghostty, Konsole and Warp; PNG in base64, in chunks.
- *iterm*: the inline images of iTerm2, WezTerm and mintty; a file in base64.
- *sixel*: see `sixels`.
"""

import base64
import io
from collections.abc import Mapping
from typing import Literal, cast

from PIL import Image

from metamorph.errors import UserError
from metamorph.terminal.device import ScreenSize, device_attributes
from metamorph.terminal.sixel import sixels

Graphics = Literal["kitty", "iterm", "sixel", "none"]
CHUNK = 4096  # of base64, as kitty wants it
SMALLEST, LARGEST = 256, 1024  # pixels of the longer side; smaller ones are enlarged
SIXEL = 4  # among the device attributes of a terminal that shows them

# None: it may show sixels, and says so if asked.
PROGRAMS: dict[str, Graphics | None] = {
    "iTerm.app": "iterm", "WezTerm": "iterm", "mintty": "iterm", "kitty": "kitty",
    "ghostty": "kitty", "WarpTerminal": "kitty", "vscode": None, "Apple_Terminal": None,
}  # fmt: skip
TERMS: dict[str, Graphics] = {"xterm-kitty": "kitty", "xterm-ghostty": "kitty", "dumb": "none"}
# Variables that a terminal sets for what runs in it, where TERM tells nothing.
VARIABLES: dict[str, Graphics] = {
    "WEZTERM_PANE": "iterm", "WEZTERM_EXECUTABLE": "iterm", "KITTY_WINDOW_ID": "kitty",
    "GHOSTTY_RESOURCES_DIR": "kitty", "GHOSTTY_BIN_DIR": "kitty",
}  # fmt: skip
KONSOLE = 220400  # the first version with kitty's protocol


def by_environment(environment: Mapping[str, str]) -> Graphics | None:
    """What the variables say of the terminal; None if it has to be asked."""
    if is_multiplexed(environment):  # variables are of the terminal it was started from, not of
        return None  # the one that looks at it now
    program = environment.get("TERM_PROGRAM", "")
    if program in PROGRAMS:
        return PROGRAMS[program]
    if (term := environment.get("TERM", "dumb")) in TERMS:
        return TERMS[term]
    if environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm"
    konsole = environment.get("KONSOLE_VERSION", "")
    if konsole.isdecimal() and int(konsole) >= KONSOLE:
        return "kitty"
    return next((VARIABLES[name] for name in VARIABLES if environment.get(name)), None)


def is_multiplexed(environment: Mapping[str, str]) -> bool:
    """Whether tmux or GNU screen stands between, here or where this session comes from."""
    named = environment.get("TERM", "").startswith(("tmux", "screen"))
    return named or bool(environment.get("TMUX") or environment.get("STY"))


def choose(
    wanted: str, environment: Mapping[str, str], terminal: tuple[int, int] | None
) -> tuple[Graphics, bool]:
    """How pictures are shown, and whether they have to be passed through tmux.

    `wanted`: one of `Graphics`, or "auto" for what the terminal can. `terminal`: descriptors to
    read from and write to it, None if nobody looks at one. Raises `UserError` for pictures that
    cannot get through.
    """
    if wanted == "auto":
        if terminal is None:
            return "none", False
        found = by_environment(environment)
        return found or ("sixel" if _shows_sixels(terminal) else "none"), False
    if wanted == "none" or not is_multiplexed(environment):
        return cast(Graphics, wanted), False
    if environment.get("STY"):
        raise UserError(
            f"--pictures {wanted}: GNU screen does not pass pictures on, expected none or auto"
        )
    by_itself = wanted == "sixel" and terminal is not None and _shows_sixels(terminal)
    return cast(Graphics, wanted), not by_itself


def _shows_sixels(terminal: tuple[int, int]) -> bool:
    """Of tmux, too, it is tmux itself that answers."""
    return SIXEL in device_attributes(*terminal)


def through_tmux(sequence: str) -> str:
    """An escape sequence that tmux passes on to its terminal where `allow-passthrough` is on."""
    return "\x1bPtmux;" + sequence.replace("\x1b", "\x1b\x1b") + "\x1b\\"


def fitted(picture: Image.Image, size: ScreenSize) -> Image.Image:
    """The picture at the size at which it is shown: no wider than the screen, leaving a line of
    its height free, and neither tiny nor huge."""
    longest = max(picture.size)
    scale = min(
        size.width / picture.width,
        size.height * max(size.rows - 2, 1) / size.rows / picture.height,
        min(max(longest, SMALLEST), LARGEST) / longest,
    )
    width, height = (max(int(side * scale), 1) for side in picture.size)
    if (width, height) == picture.size:
        return picture
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def sequences(picture: Image.Image, graphics: Graphics) -> list[str]:
    """The escape sequences that show a picture at the cursor, pixel for pixel; none for "none"."""
    if graphics == "sixel":
        return [sixels(picture)]
    if graphics == "none":
        return []
    file = io.BytesIO()
    picture.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    if graphics == "iterm":
        size = f"width={picture.width}px;height={picture.height}px"
        return [f"\x1b]1337;File=inline=1;size={len(file.getvalue())};{size}:{data}\x07"]
    chunks = [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]
    keys = ["a=T,f=100,q=2,"] + [""] * (len(chunks) - 1)  # PNG; it shall not answer
    return [
        f"\x1b_G{key}m={int(number < len(chunks))};{chunk}\x1b\\"
        for number, (key, chunk) in enumerate(zip(keys, chunks, strict=True), 1)
    ]
