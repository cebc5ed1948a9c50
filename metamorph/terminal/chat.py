"""The chat: questions are answered, commands change what comes next."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from metamorph.config.keys import MAX_SEED
from metamorph.errors import ContextFull, UserError, shown
from metamorph.generation.messages import Message
from metamorph.generation.settings import AnswerSettings
from metamorph.terminal.attachments import FRAMES, MOST_FRAMES, frames_of, picture_of
from metamorph.terminal.commands import (
    Command,
    Question,
    help_lines,
    one_path,
    path_of,
    whole_number,
    words,
)
from metamorph.terminal.conversation import Conversation, Exchange, of_messages
from metamorph.terminal.interruption import Interruption
from metamorph.terminal.keys import setting_lines, with_value
from metamorph.terminal.printer import AnswerPrinter, Screen
from metamorph.terminal.saved import load, save
from metamorph.terminal.visible import visible

if TYPE_CHECKING:
    from metamorph.generation.answer import Answer, Reply
    from metamorph.generation.assistant import Assistant

MAKE_ROOM = (
    "/undo takes back the last question, /detach what is attached, /clear all; "
    "a smaller max_new_tokens needs less room"
)


@dataclass
class Chat:
    """One person, one model.

    Answers go to `screen`, all else that is said to `notes`. `reencode`: the model's own pictures
    are read again from their pixels in later turns, not as it predicted them. `is_typed`: a person
    sits there, so Ctrl-C ends an answer and not the chat.
    """

    assistant: Assistant
    settings: AnswerSettings
    screen: Screen
    notes: TextIO
    reencode: bool = False
    is_typed: bool = False
    conversation: Conversation = field(default_factory=Conversation)
    own_files: set[Path] = field(default_factory=set)  # conversations that may be saved again

    def take(self, entry: Command | Question) -> bool:
        """Does what was typed. False once the person leaves. Raises `UserError` and `OSError` for
        what cannot be done; the conversation is as it was before."""
        if isinstance(entry, Question):
            if entry.text:
                self.ask(entry.text)
            return True
        if entry.name == "quit":
            return False
        getattr(self, f"do_{entry.name}")(entry)
        return True

    def note(self, line: str) -> None:
        print(visible(line), file=self.notes, flush=True)

    # Questions

    def ask(self, text: str) -> None:
        """Asks about what is attached. A question without an answer is no part of the conversation,
        and `retry` asks it again."""
        conversation = self.conversation
        conversation.unanswered = text
        self._answer(conversation.question(text), conversation.exchanges)

    def _answer(self, question: Message, before: list[Exchange]) -> None:
        """Has the question answered after these exchanges, and the answer printed."""
        conversation = self.conversation
        settings = self.settings
        if self.assistant.decoder is None:
            settings = replace(settings, drawing=None)
        messages = conversation.messages(question, before)
        printer = AnswerPrinter(self.screen, can_draw=self.assistant.decoder is not None)
        with Interruption() if self.is_typed else nullcontext() as interruption:
            try:
                answer = self.assistant.submit(messages, settings, reencode=self.reencode)
            except ContextFull as error:
                raise UserError(f"{error}; {MAKE_ROOM}") from error
            self._print_all(answer, printer, interruption)
        reply = answer.reply
        if reply.finish_reason == "error":
            raise UserError(f"no answer: {reply.error}")
        if reply.finish_reason == "cancelled" and not reply.parts:
            self.note("cancelled before anything was said; /retry asks again")
            return
        conversation.exchanges = [*before, Exchange(question, reply.message)]
        if conversation.unanswered:
            conversation.unanswered, conversation.attached = "", []
        self._note_how_it_ended(reply)
        if printer.problem:
            raise UserError(printer.problem)

    def _print_all(
        self, answer: Answer, printer: AnswerPrinter, interruption: Interruption | None
    ) -> None:
        """Prints an answer while it is made. Ctrl-C ends it between two rounds of the engine; only
        a second one breaks into a round."""
        is_cancelled = False
        try:
            while not answer.finished:
                if interruption is not None and interruption.requested and not is_cancelled:
                    self.assistant.cancel(answer)
                    is_cancelled = True
                self.assistant.advance()
                while answer.events:
                    printer.print(answer.events.popleft())
        except (KeyboardInterrupt, OSError):  # or whoever reads it has gone
            self.assistant.cancel(answer)
            raise

    def _note_how_it_ended(self, reply: Reply) -> None:
        if reply.finish_reason == "cancelled":
            self.note("cancelled; what was said is kept, /undo takes it back")
        elif reply.finish_reason == "length":
            self.note(
                f"the answer was cut after {reply.usage.answer_tokens} tokens, see max_new_tokens"
            )
        elif not reply.parts:
            self.note("the answer is empty")

    # Commands, each of the same name

    def do_image(self, command: Command) -> None:
        pictures = [(path, picture_of(path)) for path in map(path_of, words(command))]
        for path, picture in pictures:
            self.conversation.attached.append(picture)
            self.note(f"attached {path}, {picture.width} x {picture.height} pixels")

    def do_video(self, command: Command) -> None:
        path, *rest = words(command)
        if len(rest) > 1:
            raise UserError(f"/video: expected FILE [FRAMES], got {len(rest) + 1} words")
        count = FRAMES
        if rest:
            count = whole_number(command, rest[0], 1, MOST_FRAMES)
        frames = frames_of(path_of(path), count)
        self.conversation.attached += frames
        self.note(f"attached {len(frames)} frames of {path}")

    def do_detach(self, command: Command) -> None:
        self.note(f"took back {counted(len(self.conversation.attached), 'picture')}")
        self.conversation.attached = []

    def do_undo(self, command: Command) -> None:
        if not self.conversation.exchanges:
            raise UserError("/undo: nothing was said yet")
        exchange = self.conversation.exchanges.pop()
        self.note(f"took back {shown(exchange.question.text)} and its answer")

    def do_retry(self, command: Command) -> None:
        conversation = self.conversation
        if not conversation.unanswered and not conversation.exchanges:
            raise UserError("/retry: nothing was asked yet")
        sampling = self.settings.sampling
        sampling = replace(sampling, seed=(sampling.seed + 1) % (MAX_SEED + 1))
        self.settings = replace(self.settings, sampling=sampling)
        hint = "" if sampling.temperature else "; the text stays as it is at temperature 0"
        self.note(f"with seed {sampling.seed}{hint}")
        if conversation.unanswered:
            self.ask(conversation.unanswered)
        else:
            *before, last = conversation.exchanges
            self._answer(last.question, before)

    def do_save(self, command: Command) -> None:
        path = one_path(command)
        save(path, self.conversation.all_messages, replace=path.resolve() in self.own_files)
        self.own_files.add(path.resolve())
        self.note(f"saved {counted(len(self.conversation.exchanges), 'answer')} to {path}")

    def do_load(self, command: Command) -> None:
        path = one_path(command)
        if self.conversation.exchanges:
            raise UserError("/load: this conversation would be lost; /save and /clear it first")
        config = self.assistant.model.config
        messages = load(path, config.tokens_per_image, config.visual_width)
        attached = self.conversation.attached
        self.conversation = of_messages(messages)
        self.conversation.attached = attached
        self.own_files.add(path.resolve())
        self.note(f"loaded {counted(len(self.conversation.exchanges), 'answer')} from {path}")

    def do_system(self, command: Command) -> None:
        self.conversation.system = command.argument
        self.note("the model is told so first" if command.argument else "no system text")

    def do_seed(self, command: Command) -> None:
        if not command.argument:
            raise UserError("/seed: expected N")
        whole_number(command, command.argument, 0, MAX_SEED)
        self.settings = with_value(self.settings, "seed", command.argument)

    def do_set(self, command: Command) -> None:
        if not command.argument:
            for line in setting_lines(self.settings):
                self.note(line)
            return
        key, *value = words(command)
        if len(value) > 1:
            raise UserError(f"/set: expected KEY VALUE, got {len(value) + 1} words")
        self.settings = with_value(self.settings, key, *value)

    def do_clear(self, command: Command) -> None:
        self.conversation = Conversation(self.conversation.system)

    def do_help(self, command: Command) -> None:
        for line in help_lines():
            self.note(line)


def counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
