"""Lines typed at a terminal, with editing, history and completion where Python has readline."""

import glob
import os
import sys
from typing import Any

from metamorph.terminal.commands import COMMANDS, MARK
from metamorph.terminal.history import History

readline: Any = None
try:
    import readline
except ImportError:  # Python can be built without it; the terminal then edits lines in its own way
    pass

TAKE_FILES = tuple(f"{MARK}{name} " for name, (what, _) in COMMANDS.items() if "FILE" in what)


class TypedLines:
    """Asks for lines. What cannot be read or written of the history is said once, on stderr."""

    def __init__(self, history: History | None):
        self.history = history
        if readline is None:
            return
        readline.set_auto_history(False)  # lines of whatever else this process asks do not belong
        readline.set_completer_delims(" \t\n")
        readline.set_completer(complete)
        is_libedit = "libedit" in (readline.__doc__ or "")  # as on macOS
        readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
        for line in self._kept(lambda history: history.read()) or []:
            readline.add_history(line)

    def __call__(self, prompt: str) -> str:
        line = input(prompt)
        if line.strip():
            if readline is not None:
                readline.add_history(line)
            self._kept(lambda history: history.add(line))
        return line

    def _kept(self, do):
        if self.history is None:
            return None
        try:
            return do(self.history)
        except OSError as error:
            print(f"no history is kept: {self.history.path}: {error.strerror}", file=sys.stderr)
            self.history = None


def complete(text: str, number: int) -> str | None:
    """The `number`-th way to go on with a word: a command, or a file of a command that takes one.
    As readline asks for it: None after the last."""
    line = readline.get_line_buffer().lstrip()
    found = []
    if line.startswith(TAKE_FILES):
        found = sorted(glob.glob(glob.escape(os.path.expanduser(text)) + "*"))
        found = [f"{path}/" if os.path.isdir(path) else path for path in found]
    elif line.startswith(MARK):
        found = [f"{MARK}{name} " for name in COMMANDS if f"{MARK}{name}".startswith(line)]
    return found[number] if number < len(found) else None
