"""A conversation as a person sees it: questions with answers, and what the next one shall show."""

from dataclasses import dataclass, field

from PIL import Image

from metamorph.errors import UserError
from metamorph.generation.messages import ASSISTANT, SYSTEM, USER, Message


@dataclass(frozen=True)
class Exchange:
    question: Message  # of USER
    answer: Message  # of ASSISTANT


@dataclass
class Conversation:
    """`attached`: pictures for the next question. `unanswered`: the text of a question that got no
    answer and is no part of the conversation; its pictures stay attached."""

    system: str = ""
    exchanges: list[Exchange] = field(default_factory=list)
    attached: list[Image.Image] = field(default_factory=list)
    unanswered: str = ""

    def question(self, text: str) -> Message:
        """A question about what is attached, which the model sees first."""
        return Message(USER, (*self.attached, text))

    def messages(self, question: Message, before: list[Exchange]) -> tuple[Message, ...]:
        """What the model is given: its instructions, what was said before, and the question."""
        first = (Message(SYSTEM, self.system),) if self.system else ()
        said = (message for pair in before for message in (pair.question, pair.answer))
        return (*first, *said, question)

    @property
    def all_messages(self) -> tuple[Message, ...]:
        """All that is kept when the conversation is saved."""
        if not self.exchanges:
            raise UserError("nothing was said yet")
        last = self.exchanges[-1]
        return (*self.messages(last.question, self.exchanges[:-1]), last.answer)


def of_messages(messages: tuple[Message, ...]) -> Conversation:
    """The conversation of turns that alternate between a question and an answer; a system turn may
    come first. Raises `UserError` for turns in another order."""
    system = ""
    if messages and messages[0].role == SYSTEM:
        if any(not isinstance(part, str) for part in messages[0].parts):
            raise UserError("messages[0]: a picture in the system turn, expected text")
        system, messages = messages[0].text, messages[1:]
    expected = (USER, ASSISTANT)
    for number, message in enumerate(messages):
        if message.role != expected[number % 2]:
            raise UserError(
                f"a message of {message.role} where one of {expected[number % 2]} was expected"
            )
    if not messages or len(messages) % 2:
        raise UserError("the last message is not the assistant's, expected its answer")
    pairs = zip(messages[::2], messages[1::2], strict=True)
    return Conversation(system, [Exchange(question, answer) for question, answer in pairs])
