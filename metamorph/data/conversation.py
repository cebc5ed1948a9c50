"""Conversations with images in them, and their token form.

The written format is LLaVA's: turns alternate between a human and the model, and every `<image>`
in a turn stands for the next image of the sample, in prompts and in responses alike. The chat
template is Llama-3's, without a system prompt.
"""

from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor

from metamorph.data.images import Picture
from metamorph.errors import SampleError, UserError
from metamorph.tokens import (
    BEGIN_OF_TEXT,
    END_HEADER,
    END_OF_TURN,
    IMAGE_END,
    IMAGE_PLACEHOLDER,
    IMAGE_START,
    START_HEADER,
)

USER, ASSISTANT = "user", "assistant"
ROLES = {"human": USER, "user": USER, "gpt": ASSISTANT, "assistant": ASSISTANT}


@dataclass(frozen=True)
class Turn:
    role: str  # USER or ASSISTANT
    text: str  # may hold <image> placeholders


@dataclass(frozen=True)
class Sample:
    """One training sample. `images` fill the placeholders of all turns in order."""

    id: str
    turns: tuple[Turn, ...]
    images: tuple[Image.Image | Picture, ...] = ()
    where: str = ""  # file and line, for messages


@dataclass
class Document:
    """A sample as tokens. A visual position holds `image_start`'s id, which is never embedded."""

    sample_id: str
    token_ids: list[int] = field(default_factory=list)  # [L]
    supervised: list[bool] = field(default_factory=list)  # [L] text tokens of responses
    spans: list[tuple[int, int]] = field(default_factory=list)  # per image, end exclusive
    is_target: list[bool] = field(default_factory=list)  # per image: lies in a response
    images: tuple[Image.Image | Picture, ...] = ()
    features: Tensor | None = None  # [images, tokens, C] in place of images, where cached

    def __len__(self) -> int:
        return len(self.token_ids)


def check_conversation(sample: Sample) -> None:
    """Raises `SampleError` for turns out of order or `<image>` counts that do not add up."""
    if not sample.turns:
        raise SampleError("empty conversation", f"sample {sample.id}: has no turns")
    for position, turn in enumerate(sample.turns):
        expected = (USER, ASSISTANT)[position % 2]
        if turn.role != expected:
            raise SampleError(
                "turns out of order",
                f"sample {sample.id}: turn {position} is from {turn.role}, expected {expected}",
            )
    placeholders = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in sample.turns)
    if placeholders != len(sample.images):
        raise SampleError(
            "image count differs",
            f"sample {sample.id}: {placeholders} {IMAGE_PLACEHOLDER} placeholders "
            f"but {len(sample.images)} images",
        )


class ChatEncoder:
    """Turns conversations into token ids with a fixed number of visual tokens an image.

    `tokenizer` is a transformers tokenizer that knows the Llama-3 chat tokens and
    `<image_start>` / `<image_end>`; ids are looked up, never assumed. `UserError` if it
    lacks one.
    """

    def __init__(self, tokenizer, tokens_per_image: int):
        self.tokenizer = tokenizer
        self.tokens_per_image = tokens_per_image
        vocabulary = tokenizer.get_vocab()
        missing = [
            name
            for name in (BEGIN_OF_TEXT, START_HEADER, END_HEADER, END_OF_TURN)
            + (IMAGE_START, IMAGE_END)
            if name not in vocabulary
        ]
        if missing:
            raise UserError(
                f"tokenizer: it lacks the special tokens {', '.join(missing)}; expected one with "
                f"Llama-3's chat tokens, {IMAGE_START} and {IMAGE_END}"
            )
        self.begin_of_text = vocabulary[BEGIN_OF_TEXT]
        self.end_of_turn = vocabulary[END_OF_TURN]
        self.image_start = vocabulary[IMAGE_START]
        self.image_end = vocabulary[IMAGE_END]
        self._headers = {
            role: [
                vocabulary[START_HEADER],
                *self._text_ids(role),
                vocabulary[END_HEADER],
                *self._text_ids("\n\n"),
            ]
            for role in (USER, ASSISTANT)
        }

    def _text_ids(self, text: str) -> list[int]:
        # User text is data: special tokens written out in it must not become control tokens.
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def _append(self, document: Document, token_ids: list[int], supervised: bool) -> None:
        document.token_ids.extend(token_ids)
        document.supervised.extend([supervised] * len(token_ids))

    def _append_image(self, document: Document, is_response: bool) -> None:
        self._append(document, [self.image_start], is_response)
        start = len(document)
        self._append(document, [self.image_start] * self.tokens_per_image, False)
        document.spans.append((start, len(document)))
        document.is_target.append(is_response)
        self._append(document, [self.image_end], is_response)

    def _append_turn(self, document: Document, turn: Turn) -> None:
        is_response = turn.role == ASSISTANT
        self._append(document, self._headers[turn.role], False)
        for number, part in enumerate(turn.text.split(IMAGE_PLACEHOLDER)):
            if number > 0:
                self._append_image(document, is_response)
            if part:
                self._append(document, self._text_ids(part), is_response)
        self._append(document, [self.end_of_turn], is_response)

    def encode(self, sample: Sample) -> Document:
        """A whole conversation, for training. Raises `SampleError` if it is not well formed."""
        check_conversation(sample)
        document = Document(sample_id=sample.id, images=sample.images)
        self._append(document, [self.begin_of_text], False)
        for turn in sample.turns:
            self._append_turn(document, turn)
        return document

    def encode_prompt(self, sample: Sample) -> Document:
        """A conversation that ends with the user's turn, followed by the response header."""
        document = self.encode(sample)
        if sample.turns[-1].role != USER:
            raise SampleError("no question", f"sample {sample.id}: the last turn is not the user's")
        self._append(document, self._headers[ASSISTANT], False)
        return document

    def decode(self, token_ids: list[int]) -> str:
        """The text of generated ids, without special tokens."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=True).strip()
