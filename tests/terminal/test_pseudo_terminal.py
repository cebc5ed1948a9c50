"""The chat at a real terminal: a pseudo one, whose other end plays the person."""

import os
import pty
import re
import select
import signal
import sys
import time
import traceback
from functools import partial
from pathlib import Path

import pytest

from metamorph.cli import chat
from metamorph.cli.command import main
from metamorph.terminal import graphics
from metamorph.terminal.device import device_attributes
from tests.terminal.scripted import ScriptedAssistant, draw, finish, say

SECONDS = 60


def converse(folder: Path, arguments: list[str], variables: dict, answers) -> None:
    """What runs at the terminal: `metamorph chat` with an assistant that answers so."""
    sys.stdin, sys.stdout, sys.stderr = (open(n, mode) for n, mode in enumerate(("r", "w", "w")))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update({"HOME": str(folder), "TERM": "xterm"} | variables)
    assistant = ScriptedAssistant(*answers)
    assistant.before_event = lambda event: time.sleep(0.005)
    # However busy the machine is on which the person of this test has to answer.
    graphics.device_attributes = partial(device_attributes, seconds=SECONDS)
    chat.open_assistant = lambda arguments, slots: assistant
    code = main(["chat", *arguments])
    sys.stdout.flush()
    os._exit(code)


class Person:
    """Types, and reads what is there to see."""

    def __init__(self, process: int, descriptor: int):
        self.process, self.descriptor = process, descriptor
        self.unread = ""

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def until(self, pattern: str) -> str:
        """What came up to here. Fails if it does not come in time."""
        end = time.monotonic() + SECONDS
        while (found := re.search(pattern, self.unread)) is None:
            ready, _, _ = select.select([self.descriptor], [], [], max(end - time.monotonic(), 0))
            assert ready, f"waited for {pattern!r}, saw {self.unread!r}"
            self.unread += os.read(self.descriptor, 65536).decode()
        seen, self.unread = self.unread[: found.end()], self.unread[found.end() :]
        return seen

    def exit_code(self, key: str = "") -> int:
        """What the chat ended with. Fails if it does not end in time.

        `key` is typed each second until then: Python sees a Ctrl-C that came a moment before it
        waits for a line only with the key after it.
        """
        end = time.monotonic() + SECONDS
        while (ended := os.waitpid(self.process, os.WNOHANG))[0] == 0:
            assert time.monotonic() < end, f"it does not end, last seen {self.unread!r}"
            if key:
                self.type(key)
            time.sleep(1 if key else 0.02)
        self.process = 0
        return os.waitstatus_to_exitcode(ended[1])

    def leave(self) -> None:
        if self.process:
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
        os.close(self.descriptor)


@pytest.fixture
def sit_down(tmp_path):
    persons = []

    def sit_down(*answers, arguments=(), **variables) -> Person:
        process, descriptor = pty.fork()
        if process == 0:
            try:
                converse(tmp_path, list(arguments), variables, answers)
            finally:
                traceback.print_exc()
                os._exit(70)
        persons.append(Person(process, descriptor))
        return persons[-1]

    yield sit_down
    for person in persons:
        person.leave()


def test_a_conversation_at_a_terminal(sit_down, tmp_path):
    person = sit_down([*say("A red one: "), *draw(), *finish()], [*say("on ", "and on"), *finish()])
    person.until(re.escape("\x1b[c"))  # it asks what the terminal can
    person.type("\x1b[?62;4c")
    assert "/help lists the commands" in person.until("> ")
    person.type("Draw!\b one.\r")  # a mistake, mended
    seen = person.until("> ")
    assert "A red one: " in seen and "picture 1: 4 of 4 tokens" in seen
    assert "\x1bP0;1q" in seen and "[picture: picture-1.png]" in seen
    assert (tmp_path / "picture-1.png").exists()
    person.type("/imge x\r")
    assert "the nearest is '/image'" in person.until("> ")
    person.type("\x1b[A\x1b[A\r")  # two lines up in the history
    assert "on and on" in person.until("on and on\r\n> ")
    person.type("\x04")
    assert person.exit_code() == 0
    history = tmp_path / ".local/state/metamorph/chat_history"
    assert history.read_text() == "Draw one.\n/imge x\nDraw one.\n"


def test_ctrl_c_ends_an_answer_then_the_chat(sit_down):
    person = sit_down([*say(*["and on "] * 20000), *finish()], TERM="dumb")
    person.until("> ")
    person.type("Go on.\r")
    person.until("and on and on ")
    person.type("\x03")
    assert "what was said is kept" in person.until("> ")
    assert person.exit_code("\x03") == 0


def test_no_history_is_kept_if_none_is_wanted(sit_down, tmp_path):
    options = ["--no-history", "--pictures", "none", "--save-to", "drawn"]
    person = sit_down([*draw(), *finish()], arguments=options)
    person.until("> ")
    person.type('"""\rsecret\r"""\r')
    assert "[picture: drawn/picture-1.png]" in person.until(r"png\]\r\n> ")
    person.type("/quit\r")
    assert person.exit_code() == 0
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == ["drawn"]
