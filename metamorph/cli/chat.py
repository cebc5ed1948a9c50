"""metamorph chat: a conversation with a trained model, in a terminal or over a pipe."""

import argparse
import io
import os
import signal
import sys
from pathlib import Path

from metamorph.cli.answer_arguments import (
    add_answer_arguments,
    add_conversation_arguments,
    add_model_arguments,
    add_system_argument,
    check_sampling,
    open_assistant,
    settings_of,
)
from metamorph.cli.generate import make_writable
from metamorph.errors import UserError

NAME = "chat"
SUMMARY = "talk with a trained model, in a terminal or over a pipe"
DESCRIPTION = """\
A conversation: text comes as it is made, pictures are saved and, where the terminal can, shown.
/help lists what else can be typed; Ctrl-C ends an answer, Ctrl-D the conversation. Over a pipe each
line is a question or a command, and answers go to standard output.

  metamorph chat
  metamorph chat --model runs/mine/model --temperature 0.7 --save-to drawings
  metamorph chat < questions.txt"""
PICTURES = ("auto", "kitty", "iterm", "sixel", "none")
READER_GONE = 128 + signal.SIGPIPE  # as shells count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add_system_argument(parser)
    add_answer_arguments(parser)
    add_conversation_arguments(parser)
    parser.add_argument(
        "--save-to", type=Path, default=Path("."), metavar="FOLDER",
        help="where pictures of the answers go (default: here)",
    )  # fmt: skip
    parser.add_argument(
        "--pictures", choices=PICTURES, default="auto",
        help="how the terminal shows pictures (default: as it can)",
    )  # fmt: skip
    parser.add_argument("--no-history", action="store_true", help="forget what was typed")


def run(arguments: argparse.Namespace) -> int | None:
    from metamorph.terminal.chat import Chat
    from metamorph.terminal.conversation import Conversation
    from metamorph.terminal.entries import PipedLines
    from metamorph.terminal.graphics import choose
    from metamorph.terminal.history import History, history_path
    from metamorph.terminal.printer import Screen
    from metamorph.terminal.talk import talk_piped, talk_typed
    from metamorph.terminal.typed_lines import TypedLines

    if sys.stdin is None:
        raise UserError("standard input is closed, expected questions there")
    is_typed = sys.stdin.isatty() and sys.stdout.isatty()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # whatever the locale cannot spell
    check_sampling(arguments)
    settings = settings_of(arguments)
    make_writable(arguments.save_to)  # not after minutes of work
    descriptors = (sys.stdin.fileno(), sys.stdout.fileno()) if is_typed else None
    graphics, in_tmux = choose(arguments.pictures, os.environ, descriptors)
    assistant = open_assistant(arguments, slots=1)
    screen = Screen(sys.stdout, arguments.save_to, graphics, is_typed, in_tmux)
    chat = Chat(
        assistant,
        settings,
        screen,
        sys.stderr,
        reencode=arguments.reencode,
        is_typed=is_typed,
        conversation=Conversation(arguments.system),
    )
    if assistant.decoder is None:
        chat.note(
            f"{arguments.model} has no decoder/, so pictures of answers are not drawn; "
            f"--decoder FOLDER names one that was trained apart"
        )
    if not is_typed:
        try:
            talk_piped(chat, PipedLines(sys.stdin))
        except BrokenPipeError:  # whoever read the answers has gone
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())  # for what is still to be flushed
            return READER_GONE
        return None
    chat.note(f"{arguments.model}: /help lists the commands, Ctrl-D leaves")
    path = None if arguments.no_history else history_path(os.environ)
    talk_typed(chat, TypedLines(None if path is None else History(path)))
    return None
