"""The two ways to chat: typed at a terminal, and over a pipe."""

from metamorph.errors import UserError
from metamorph.terminal.chat import Chat
from metamorph.terminal.commands import Command, Question
from metamorph.terminal.entries import PipedLines, ReadLine, read_entry


def talk_typed(chat: Chat, read_line: ReadLine) -> None:
    """Until the person leaves: by /quit, by Ctrl-D, or by Ctrl-C at the prompt. What goes wrong is
    said, and the conversation goes on."""
    while True:
        try:
            if not chat.take(_typed_entry(chat, read_line)):
                return
        except UserError as error:
            chat.note(str(error))
        except OSError as error:
            name = "" if error.filename is None else f"{error.filename}: "
            chat.note(f"{name}{error.strerror or error}")
        except KeyboardInterrupt:
            chat.note("interrupted; the conversation is as it was")


def _typed_entry(chat: Chat, read_line: ReadLine) -> Command | Question:
    try:
        return read_entry(read_line)
    except (EOFError, KeyboardInterrupt):
        chat.note("")  # what comes next shall not stand behind the prompt
        return Command("quit")


def talk_piped(chat: Chat, lines: PipedLines) -> None:
    """Until the last line. Raises `UserError` for the first that goes wrong, with its number."""
    while True:
        try:
            if not chat.take(read_entry(lines)):
                return
        except EOFError:
            return
        except UserError as error:
            raise UserError(f"line {lines.number}: {error}") from error
