"""Conversations with images in them, and their token form.

The written format is LLaVA's: turns alternate between a human and the model, and every `<image>`
in a turn stands for the next image of the sample, in prompts and in responses alike. A system turn
may come first. How turns are written is the tokenizer's chat template's to say.
"""

from dataclasses import dataclass, field, replace

from PIL import Image
from torch import Tensor

from metamorph.data.images import Picture
from metamorph.errors import SampleError, UserError
from metamorph.model.chat_template import (
    ASSISTANT,
    MOST_TURNS,
    SYSTEM,
    THOUGHT_BEGIN,
    THOUGHT_END,
    USER,
    ChatTemplate,
    Skeleton,
    mark_of,
    thought_of,
)
from metamorph.tokens import IMAGE_END, IMAGE_PLACEHOLDER, IMAGE_START

# Of all turns of a sample: twice what the longest context of Llama 3 holds, encoded in seconds.
MOST_CHARACTERS = 2**20
ROLES = {
    "human": USER, "user": USER, "gpt": ASSISTANT, "assistant": ASSISTANT, "model": ASSISTANT,
    "system": SYSTEM, "developer": SYSTEM,
}  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """What one side says. In `text` each `<image>` stands for an image, unless `pieces` says what
    stands before, between and behind the images: then it is text like any other."""

    role: str  # USER, ASSISTANT or SYSTEM
    text: str
    pieces: tuple[str, ...] | None = None

    @classmethod
    def of_pieces(cls, role: str, pieces: tuple[str, ...]) -> "Turn":
        return cls(role, IMAGE_PLACEHOLDER.join(pieces), pieces)

    @property
    def words(self) -> tuple[str, ...]:
        """The text before, between and behind its images."""
        return tuple(self.text.split(IMAGE_PLACEHOLDER)) if self.pieces is None else self.pieces


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
    was_cut: bool = False  # to the length of a row
    prompt_images: str = "causal"  # or bidirectional

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def bidirectional_spans(self) -> list[tuple[int, int]]:
        """Spans of the images that see themselves whole: of prompts, never of responses, whose
        tokens would be known to those before, which predict them."""
        if self.prompt_images == "causal":
            return []
        pairs = zip(self.spans, self.is_target, strict=True)
        return [span for span, is_target in pairs if not is_target]

    def cut(self, length: int) -> "Document":
        """Its first tokens, `length` at most: it ends before an image rather than within one."""
        for start, end in self.spans:
            if start - 1 < length <= end:  # from its start token to its end token
                length = start - 1
        images = sum(end < length for _, end in self.spans)
        return replace(
            self,
            token_ids=self.token_ids[:length],
            supervised=self.supervised[:length],
            spans=self.spans[:images],
            is_target=self.is_target[:images],
            images=self.images[:images],
            was_cut=True,
        )


def images_first(turns: tuple[Turn, ...], images: int) -> tuple[Turn, ...]:
    """The turns, the images before the first question if no `<image>` says where they stand."""
    if any(IMAGE_PLACEHOLDER in turn.text for turn in turns):
        return turns
    asked = next((i for i, turn in enumerate(turns) if turn.role == USER), None)
    if asked is None:
        return turns
    question = Turn(USER, IMAGE_PLACEHOLDER * images + turns[asked].text)
    return (*turns[:asked], question, *turns[asked + 1 :])


def check_conversation(sample: Sample) -> None:
    """Raises `SampleError` for turns out of order or `<image>` counts that do not add up."""
    if not sample.turns:
        raise SampleError("empty conversation", f"sample {sample.id}: has no turns")
    if len(sample.turns) > MOST_TURNS:
        message = f"sample {sample.id}: {len(sample.turns)} turns, expected at most {MOST_TURNS}"
        raise SampleError("too many turns", message)
    length = sum(len(turn.text) for turn in sample.turns)
    if length > MOST_CHARACTERS:
        problem = f"{length} characters of text, expected at most {MOST_CHARACTERS}"
        raise SampleError("too much text", f"sample {sample.id}: {problem}")
    first = int(sample.turns[0].role == SYSTEM)
    for position, turn in enumerate(sample.turns[first:]):
        expected = (USER, ASSISTANT)[position % 2]
        if turn.role != expected:
            raise SampleError(
                "turns out of order",
                f"sample {sample.id}: turn {position + first} is from {turn.role}, "
                f"expected {expected}",
            )
    placeholders = sum(len(turn.words) - 1 for turn in sample.turns)
    if placeholders != len(sample.images):
        raise SampleError(
            "image count differs",
            f"sample {sample.id}: {placeholders} {IMAGE_PLACEHOLDER} placeholders "
            f"but {len(sample.images)} images",
        )


class ChatEncoder:
    """Turns conversations into token ids with a fixed number of visual tokens an image.

    `tokenizer` is a transformers tokenizer with a chat template and the image tokens, as
    `add_image_tokens` leaves it; ids are looked up, never assumed. `UserError` if it has none.

    Template and words are encoded together where they meet, as transformers does it, but words are
    never searched for control tokens; and whatever stands before a response is encoded without
    looking at it, so that a prompt is how training begins, token for token. `prompt_images` is the
    model's: its documents say which images see themselves whole, in training and in generation.
    """

    def __init__(self, tokenizer, tokens_per_image: int, prompt_images: str = "causal"):
        self.tokenizer = tokenizer
        self.tokens_per_image, self.prompt_images = tokens_per_image, prompt_images
        self.vocabulary = tokenizer.get_vocab()
        missing = [name for name in (IMAGE_START, IMAGE_END) if name not in self.vocabulary]
        if missing or tokenizer.chat_template is None:
            lacked = ", ".join(missing or ["a chat template"])
            raise UserError(
                f"tokenizer: it lacks {lacked}; expected one that add_image_tokens was given"
            )
        self.template = ChatTemplate.of(tokenizer)
        self.end_of_turn = self.vocabulary[self.template.end_of_response()]
        self.image_start = self.vocabulary[IMAGE_START]
        self.image_end = self.vocabulary[IMAGE_END]

    def encode(self, sample: Sample) -> Document:
        """A whole conversation, for training. Raises `SampleError` if it is not well formed, or
        holds nothing that could be learned."""
        document = self.document(sample, begin_response=False)
        if not any(document.supervised):
            raise SampleError("no response", f"sample {sample.id}: no turn is the assistant's")
        return document

    def encode_prompt(self, sample: Sample) -> Document:
        """A conversation that ends with the user's turn, followed by how a response begins."""
        if sample.turns and sample.turns[-1].role != USER:
            raise SampleError("no question", f"sample {sample.id}: the last turn is not the user's")
        return self.document(sample, begin_response=True)

    def decode(self, token_ids: list[int]) -> str:
        """The text of generated ids, without special tokens."""
        text = self.tokenizer.decode(
            token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text.strip()

    def document(self, sample: Sample, begin_response: bool) -> Document:
        """A conversation, whoever spoke last, and with `begin_response` how a response begins.
        Raises `SampleError` if it is not well formed."""
        check_conversation(sample)
        skeleton, words = self._skeleton(sample.turns)
        try:
            pieces = self.template.pieces(skeleton, begin_response)
        except SampleError as error:
            raise SampleError(error.cause, f"sample {sample.id}: {error}") from error
        document = Document(sample.id, images=sample.images, prompt_images=self.prompt_images)
        writer = _Writer(self, document)
        for piece in pieces:
            if piece.begins_response:
                writer.flush()
            if piece.is_control:
                writer.control(piece.text, piece.supervised)
            elif piece.turn is None:
                writer.text(piece.text, piece.supervised)
            else:
                if self.template.parts_text:
                    writer.part()
                for number, part in enumerate(words[piece.turn]):
                    if number > 0:
                        writer.image(piece.supervised)
                    writer.text(part, piece.supervised)
        writer.flush()
        return writer.document

    def _skeleton(self, turns: tuple[Turn, ...]) -> tuple[Skeleton, dict[int, list[str]]]:
        """Roles with a mark for the words of each turn, and those words, between images. Blanks
        around the words stay with the mark, for templates to strip or not."""
        skeleton, words = [], {}
        for number, turn in enumerate(turns):
            said = list(turn.words)
            thought = ""
            if turn.role == ASSISTANT and self.template.parts_thoughts:
                place = thought_of(number)
                thought, spoken, said[0] = _thought(said[0], mark_of(place))
                words[place] = [spoken]
            before = after = ""
            if not self.template.parts_text:
                before = said[0][: len(said[0]) - len(said[0].lstrip())]
                said[0] = said[0].lstrip()
                after = said[-1][len(said[-1].rstrip()) :]
                said[-1] = said[-1].rstrip()
            skeleton.append((turn.role, thought + before + mark_of(number) + after))
            words[number] = said
        return tuple(skeleton), words

    def text_ids(self, control: str, before: str, text: str) -> list[int]:
        """Ids of `text`, which follows `before`, which follows a control token (or nothing)."""
        if not self.template.special_pattern.search(before + text):
            start = self._ids(control + before)
            whole = self._ids(control + before + text)
            if whole[: len(start)] == start:
                return whole[len(start) :]
        # User text is data: special tokens written out in it must not become control tokens.
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=False)


def _thought(text: str, mark: str) -> tuple[str, str, str]:
    """Of a response that begins with a thought, from <think> to </think>: the thought as a template
    sees it, with `mark` for its words, those words, and the rest; of another the rest alone."""
    start = text.lstrip()
    inner, end, rest = start.removeprefix(THOUGHT_BEGIN).partition(THOUGHT_END)
    if not start.startswith(THOUGHT_BEGIN) or not end or THOUGHT_BEGIN in inner:
        return "", "", text
    if words := inner.strip():
        before, _, after = inner.partition(words)
        inner = before + mark + after
    return THOUGHT_BEGIN + inner + THOUGHT_END, words, rest


class _Writer:
    """Writes a document: control tokens, images, and text in runs that are as long as can be."""

    def __init__(self, encoder: ChatEncoder, document: Document):
        self.encoder, self.document = encoder, document
        self.run, self.run_supervised = "", False
        self.before = ("", "")  # the last control token, and the text since then

    def text(self, text: str, supervised: bool) -> None:
        if supervised != self.run_supervised:
            self.flush()
        self.run, self.run_supervised = self.run + text, supervised

    def flush(self) -> None:
        control, before = self.before
        if self.run:
            self._append(self.encoder.text_ids(control, before, self.run), self.run_supervised)
        self.before, self.run = (control, before + self.run), ""

    def part(self) -> None:
        """What follows is encoded as if nothing stood before it."""
        self.flush()
        self.before = ("", "")

    def control(self, token: str, supervised: bool) -> None:
        self.flush()
        self._append([self.encoder.vocabulary[token]], supervised)
        self.before = (token, "")

    def image(self, supervised: bool) -> None:
        self.control(IMAGE_START, supervised)
        start = len(self.document)
        self._append([self.encoder.image_start] * self.encoder.tokens_per_image, False)
        self.document.spans.append((start, len(self.document)))
        self.document.is_target.append(supervised)
        self.control(IMAGE_END, supervised)

    def _append(self, token_ids: list[int], supervised: bool) -> None:
        self.document.token_ids.extend(token_ids)
        self.document.supervised.extend([supervised] * len(token_ids))
