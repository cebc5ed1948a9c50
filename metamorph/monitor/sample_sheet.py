"""Drawings of a model in training: requests of its data, the real picture, and what it draws."""

from dataclasses import dataclass

import torch
from PIL import Image

from metamorph.config import RunConfig
from metamorph.data.conversation import ASSISTANT, USER, ChatEncoder, Sample
from metamorph.data.images import opened, shorten
from metamorph.data.skips import skippable
from metamorph.data.sources import Source
from metamorph.decoder.kinds import open_decoder_for
from metamorph.errors import SampleError, UserError
from metamorph.evaluation.contact_sheet import SheetDrawing, SheetEntry, contact_sheet
from metamorph.folders import check_folder
from metamorph.generation.assistant import Assistant
from metamorph.generation.engine import EngineOptions
from metamorph.generation.messages import question
from metamorph.generation.settings import AnswerSettings
from metamorph.model.unified import MetaMorph
from metamorph.tokens import IMAGE_PLACEHOLDER

LOOKED_AT = 1000  # samples, to find some that draw
LONGEST_TEXT = 64  # tokens beside those of one image


@dataclass(frozen=True)
class Request:
    """A user's first turn whose answer holds one picture."""

    text: str
    images: tuple[Image.Image, ...]  # of the turn
    real: Image.Image
    tokens: int  # of the prompt


def find_requests(source: Source, count: int, encoder: ChatEncoder, longest: int) -> list[Request]:
    """The first samples of the data that draw when asked in `longest` tokens or fewer. `UserError`
    if `LOOKED_AT` hold none."""
    found, tried = [], min(LOOKED_AT, len(source))
    for index in range(tried):
        try:
            with skippable():
                request = _request(source.sample(index), encoder, longest)
        except SampleError:  # training counts it
            continue
        if request is not None:
            found.append(request)
        if len(found) == count:
            return found
    if not found:
        raise UserError(
            f"monitor.samples_every: none of the first {tried} samples begins with a question, "
            f"without a system turn, whose answer is a picture"
        )
    return found


def _request(sample: Sample, encoder: ChatEncoder, longest: int) -> Request | None:
    if len(sample.turns) < 2 or [turn.role for turn in sample.turns[:2]] != [USER, ASSISTANT]:
        return None
    asked, answer = sample.turns[:2]
    given = asked.text.count(IMAGE_PLACEHOLDER)
    if answer.text.count(IMAGE_PLACEHOLDER) != 1 or len(sample.images) <= given:
        return None
    tokens = len(encoder.encode_prompt(Sample(sample.id, (asked,), sample.images[:given])))
    if tokens > longest:
        return None
    images = tuple(opened(image) for image in sample.images[: given + 1])
    return Request(asked.text, images[:given], images[given], tokens)


class SampleSheet:
    """Draws the same requests again and again, as training goes on.

    The decoder was trained apart, from the same encoder's features. Raises `UserError` for a
    decoder that does not fit, and data that draw nothing.
    """

    def __init__(self, config: RunConfig, source: Source, model: MetaMorph, tokenizer):
        folder = check_folder(config.monitor.decoder, "monitor.decoder")
        self.decoder = open_decoder_for(folder, model.config, model.vision)
        encoder = ChatEncoder(tokenizer, model.config.tokens_per_image)
        self.max_new_tokens = model.config.tokens_per_image + LONGEST_TEXT
        longest = model.config.language.max_position_embeddings - self.max_new_tokens
        self.requests = find_requests(source, config.monitor.samples, encoder, longest)
        self.context = max(request.tokens for request in self.requests) + self.max_new_tokens
        self.tokenizer, self.precision = tokenizer, config.training.precision

    @torch.no_grad()
    def draw(self, model: MetaMorph) -> Image.Image:
        """A contact sheet. The model's mode and the random state of training stay as they are."""
        training = model.training
        device = model.projector.linear_1.weight.device
        chat = Assistant(
            model,
            self.tokenizer,
            self.decoder.to(device),
            precision=self.precision,
            options=EngineOptions(slots=len(self.requests), context=self.context),
        )
        try:
            replies = chat.generate(
                [[question(request.text, *request.images)] for request in self.requests],
                AnswerSettings(self.max_new_tokens, drawing=None),
            )
            drawn = chat.draw_batch([r.features[:1] for r in replies], seeds=range(len(replies)))
        finally:
            model.train(training)
            self.decoder.to("cpu")
        entries = [
            SheetEntry(
                shorten(request.text.replace(IMAGE_PLACEHOLDER, "[picture] ")),
                request.real,
                {"drawn": SheetDrawing(pictures[0] if pictures else None)},
            )
            for request, pictures in zip(self.requests, drawn, strict=True)
        ]
        return contact_sheet(entries)
