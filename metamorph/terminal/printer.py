"""An answer as it comes: text at once, pictures at their places, saved and shown.

What follows a picture waits until it is drawn, so that all stands in the order of the answer.
"""

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from PIL import Image
from torch import Tensor

from metamorph.generation.events import (
    DrawingProgress,
    Event,
    Finished,
    ImageDrawn,
    ImageFeatures,
    ImageProgress,
    ImageStarted,
    TextPiece,
)
from metamorph.generation.messages import Drawing
from metamorph.generation.picture_files import png_bytes
from metamorph.terminal.device import ScreenSize
from metamorph.terminal.graphics import Graphics, fitted, sequences, through_tmux
from metamorph.terminal.visible import visible

ECHO = "^C"  # what a terminal adds to a line on which Ctrl-C was pressed


@dataclass
class Place:
    """Where a picture stands in an answer. `is_over`: nothing more will come of it."""

    number: int
    features: Tensor | None = None  # [tokens, C]
    picture: Image.Image | None = None
    is_over: bool = False


@dataclass
class Screen:
    """Where answers go.

    `shows_progress`: a line of it is written and wiped out again; never where no person looks.
    `in_tmux`: escape sequences have to be passed through it.
    """

    out: TextIO
    folder: Path  # of the pictures
    graphics: Graphics = "none"
    shows_progress: bool = False
    in_tmux: bool = False

    def show(self, picture: Image.Image) -> None:
        """The picture within the terminal, if it can."""
        if self.graphics == "none":
            return
        for sequence in sequences(fitted(picture, self.size()), self.graphics):
            self.out.write(through_tmux(sequence) if self.in_tmux else sequence)
        self.out.write("\n")

    def size(self) -> ScreenSize:
        return ScreenSize.of(self.out)


class AnswerPrinter:
    """Prints one answer. `problem` says what of it could not be saved; empty if all could."""

    def __init__(self, screen: Screen, *, can_draw: bool):
        self.screen = screen
        self.can_draw = can_draw
        self.problem = ""
        self._waiting: deque[str | Place] = deque()  # not printed yet, in order
        self._places: dict[int, Place] = {}  # by number
        self._at_line_start = True
        self._progress = 0  # characters of the line of progress that is there now

    def print(self, event: Event) -> None:
        """Prints what this event makes possible to print."""
        match event:
            case TextPiece(text):
                self._waiting.append(text)
            case ImageStarted(number, tokens):
                self._places[number] = place = Place(number)
                self._waiting.append(place)
                self._flush()
                self._show_progress(place, f"0 of {tokens} tokens")
            case ImageProgress(number, done, tokens):
                self._show_progress(self._places[number], f"{done} of {tokens} tokens")
            case ImageFeatures(number, features):
                self._places[number].features = features
                self._places[number].is_over = not self.can_draw
            case DrawingProgress(number, step, steps):
                self._show_progress(self._places[number], f"drawing, step {step} of {steps}")
            case ImageDrawn(number, picture):
                self._places[number].picture = picture
                self._places[number].is_over = True
            case Finished():
                for place in self._places.values():
                    place.is_over = True
        self._flush()
        if isinstance(event, Finished):
            self._wipe_progress()
            self._begin_line()
        self.screen.out.flush()

    def _flush(self) -> None:
        while self._waiting:
            part = self._waiting[0]
            if isinstance(part, str):
                self._write(visible(part))
            elif part.is_over:
                self._write_picture(part)
            else:
                return
            self._waiting.popleft()

    def _write_picture(self, place: Place) -> None:
        self._wipe_progress()
        self._begin_line()
        if place.picture is None or place.features is None:
            self._write("[picture: not drawn]\n")
            return
        self.screen.show(place.picture)
        try:
            path = write_new(self.screen.folder, png_bytes(Drawing(place.features, place.picture)))
        except OSError as error:  # the picture is still part of the conversation
            self.problem = f"a picture could not be saved to {self.screen.folder}: {error.strerror}"
            self._write("[picture: not saved]\n")
        else:
            self._write(f"[picture: {visible(str(path))}]\n")

    def _write(self, text: str) -> None:
        if text:
            self.screen.out.write(text)
            self._at_line_start = text.endswith("\n")

    def _begin_line(self) -> None:
        if not self._at_line_start:
            self._write("\n")

    def _show_progress(self, place: Place, what: str) -> None:
        """On one line, of the picture that all the rest waits for."""
        if not self.screen.shows_progress or not self._waiting or self._waiting[0] is not place:
            return
        self._begin_line()
        line = f"picture {place.number + 1}: {what}"[
            : max(self.screen.size().columns - len(ECHO) - 1, 0)
        ]
        self.screen.out.write("\r" + line.ljust(self._progress))
        self._progress = len(line)

    def _wipe_progress(self) -> None:
        if self._progress:
            self.screen.out.write("\r" + " " * (self._progress + len(ECHO)) + "\r")
            self._progress = 0


def write_new(folder: Path, content: bytes) -> Path:
    """Writes a picture under the first `picture-N.png` that does not exist yet. Raises `OSError`,
    and leaves no half of it."""
    number = 1
    while True:
        path = folder / f"picture-{number}.png"
        try:
            file = path.open("xb")
        except FileExistsError:
            number += 1
            continue
        try:
            with file:
                file.write(content)
        except OSError:
            path.unlink()
            raise
        return path
