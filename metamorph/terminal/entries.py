"""Lines to questions and commands: one a line, or over several of them."""

from collections.abc import Callable
from typing import TextIO

from metamorph.errors import UserError
from metamorph.terminal.commands import Command, Question, parse_line

PROMPT, GOES_ON = "> ", "... "
QUOTES = '"""'
BYTE_ORDER_MARK = "\ufeff"  # which some editors begin a file with
LONGEST_LINE = 2**20  # characters, as many as a conversation may have

ReadLine = Callable[[str], str]  # prompt to line without its end; EOFError after the last


def read_entry(read_line: ReadLine) -> Command | Question:
    """The next question or command. A backslash at the end of a line lets it go on in the next;
    what stands between three double quotes is a question, whatever it holds.

    Raises `EOFError` after the last line and `UserError` for what is not well formed.
    """
    line = read_line(PROMPT)
    if line.lstrip().startswith(QUOTES):
        return Question(_quoted(line.lstrip()[len(QUOTES) :], read_line))
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        try:
            lines.append(read_line(GOES_ON))
        except EOFError:
            break
    return parse_line("\n".join(lines))


def _quoted(line: str, read_line: ReadLine) -> str:
    lines = [line]
    while not lines[-1].rstrip().endswith(QUOTES):
        try:
            lines.append(read_line(GOES_ON))
        except EOFError:
            raise UserError(f"{QUOTES} is never closed") from None
    return "\n".join(lines).rstrip().removesuffix(QUOTES).strip("\n")


class PipedLines:
    """Lines of a stream that is no terminal. `number` is that of the last one read, from 1."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.number = 0

    def __call__(self, prompt: str) -> str:
        self.number += 1
        try:
            line = self.stream.readline(LONGEST_LINE)
            line.encode()
        except UnicodeError:
            raise UserError("this is not UTF-8 text") from None
        if not line:
            self.number -= 1
            raise EOFError
        if len(line) == LONGEST_LINE:
            raise UserError(f"the line is longer than {LONGEST_LINE - 1} characters")
        line = line.rstrip("\r\n")
        return line.removeprefix(BYTE_ORDER_MARK) if self.number == 1 else line
