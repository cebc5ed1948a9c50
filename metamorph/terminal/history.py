"""Lines typed at the prompt, kept for the next time: private and bounded."""

import os
from pathlib import Path

from metamorph.disk import temporary_beside

MOST_LINES = 1000
LONGEST_LINE = 4096  # characters; longer ones are not kept
MOST_BYTES = 2 * MOST_LINES * LONGEST_LINE
PRIVATE = 0o600


def history_path(environment) -> Path | None:
    """Where the history lies: in the state folder of the XDG base directories, which is
    `~/.local/state` unless the environment names an absolute one. None without a home."""
    state = environment.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):
        state = os.path.expanduser("~/.local/state")
    return Path(state) / "metamorph" / "chat_history" if os.path.isabs(state) else None


class History:
    """A text file of one line an entry, for its owner alone. Methods raise `OSError`."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> list[str]:
        """The last `MOST_LINES` of it; a longer file is cut to them."""
        if not self.path.exists():
            return []
        self.path.chmod(PRIVATE)
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - MOST_BYTES, 0))
            text = file.read().decode(errors="replace")
        lines = [line for line in text.split("\n") if 0 < len(line) <= LONGEST_LINE]
        if len(lines) > MOST_LINES or size > MOST_BYTES:
            lines = lines[-MOST_LINES:]
            shorter = temporary_beside(self.path)
            self._write(shorter, os.O_TRUNC, lines)
            os.replace(shorter, self.path)
        return lines

    def add(self, line: str) -> None:
        """Appends a line; several chats at once may do so."""
        if not 0 < len(line) <= LONGEST_LINE:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._write(self.path, os.O_APPEND, [line])

    def _write(self, path: Path, how: int, lines: list[str]) -> None:
        """Creates the file, if need be, as nobody else's to read."""
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | how, PRIVATE), "wb") as file:
            file.write("".join(f"{line}\n" for line in lines).encode(errors="replace"))
