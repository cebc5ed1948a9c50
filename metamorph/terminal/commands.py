"""What a line says: a question, or a command of the chat."""

import difflib
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from metamorph.errors import LONGEST_VALUE, UserError, shown

MARK = "/"
COMMAND = re.compile(rf"{MARK}(?!{MARK})(\S*)\s*(.*)", re.DOTALL)
COMMANDS = {  # name: what may follow, what it does
    "image": ("FILE ...", "attach pictures to the next question"),
    "video": ("FILE [FRAMES]", "attach frames of a video, evenly spaced (8 unless you say)"),
    "detach": ("", "take back what is attached"),
    "undo": ("", "take back the last question and its answer"),
    "retry": ("", "ask the last question again, with another seed"),
    "save": ("FILE", "write the conversation as JSON, its pictures beside it"),
    "load": ("FILE", "go on with a saved conversation"),
    "system": ("TEXT", "what the model is told first; without TEXT, nothing"),
    "seed": ("N", "of text and drawing noise"),
    "set": ("KEY VALUE", "change a setting; without VALUE back to the usual one, alone show all"),
    "clear": ("", "begin a new conversation; system text and settings stay"),
    "help": ("", "show these lines"),
    "quit": ("", "leave, as Ctrl-D does"),
}


@dataclass(frozen=True)
class Command:
    name: str  # one of COMMANDS
    argument: str = ""  # the rest of the line


@dataclass(frozen=True)
class Question:
    text: str


def parse_line(line: str) -> Command | Question:
    """A line that begins with `/` is a command, one that begins with `//` a question that begins
    with one slash. Raises `UserError` for a command that is not there, and for words behind one
    that takes none."""
    line = line.strip()
    found = COMMAND.fullmatch(line)
    if found is None:
        return Question(line.removeprefix(MARK))  # of two of them
    name, argument = found.groups()
    if name not in COMMANDS:
        closest = nearest(name, COMMANDS)
        raise UserError(
            f"there is no command {shown(MARK + name)}, the nearest is '{MARK}{closest}'; "
            f"a question that begins with {MARK} is written with two of them"
        )
    if argument and not COMMANDS[name][0]:
        raise UserError(f"{MARK}{name}: expected nothing behind it, got {shown(argument)}")
    return Command(name, argument)


def nearest(name: str, names) -> str:
    """Of these names the one that was most likely meant."""
    return difflib.get_close_matches(name[:LONGEST_VALUE], list(names), n=1, cutoff=0)[0]


def words(command: Command) -> list[str]:
    """What follows a command, split as a shell does: names with blanks stand in quotes or have a
    backslash before the blank. Raises `UserError` if there is nothing."""
    try:
        found = shlex.split(command.argument)
    except ValueError as error:
        raise UserError(f"{MARK}{command.name}: {str(error).lower()}") from error
    if not found:
        raise UserError(f"{MARK}{command.name}: expected {COMMANDS[command.name][0]}")
    return found


def path_of(word: str) -> Path:
    """The path that a word names; `~` is the home folder. Raises `UserError` for that of nobody."""
    try:
        return Path(word).expanduser()
    except RuntimeError as error:
        raise UserError(f"{shown(word)}: no such user") from error


def one_path(command: Command) -> Path:
    """The only file of a command. Raises `UserError` for none or several."""
    found = words(command)
    if len(found) > 1:
        raise UserError(
            f"{MARK}{command.name}: expected one file, got {len(found)} words; a name with blanks "
            f"stands in quotes"
        )
    return path_of(found[0])


def whole_number(command: Command, word: str, least: int, most: int) -> int:
    """A word of a command as a number. Raises `UserError` for no whole one within the limits."""
    number = int(word) if word.isascii() and word.isdigit() and len(word) <= 20 else -1
    if not least <= number <= most:
        raise UserError(
            f"{MARK}{command.name}: expected a whole number, from {least} to {most}, "
            f"got {shown(word)}"
        )
    return number


def help_lines() -> list[str]:
    usages = {f"{MARK}{name} {what}".strip(): does for name, (what, does) in COMMANDS.items()}
    width = max(map(len, usages))
    return [f"{usage:<{width}}  {does}" for usage, does in usages.items()]
