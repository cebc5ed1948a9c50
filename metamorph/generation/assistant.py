"""A trained model to talk to: text and pictures in, text and pictures out."""

import time
from collections import abc
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from metamorph.config import ModelConfig
from metamorph.data.conversation import ChatEncoder, Document
from metamorph.decoder.denoising import noise_generator
from metamorph.decoder.libraries import DEFAULT_DECODER_OPTIONS, DecoderOptions
from metamorph.decoder.unopened import Decoder, decoder_of, opened, preview_of
from metamorph.errors import ContextFull, UserError
from metamorph.generation.answer import Answer, Reply
from metamorph.generation.drawing import DrawingQueue, check_drawing
from metamorph.generation.engine import DEFAULT_OPTIONS, Engine, EngineOptions
from metamorph.generation.events import Event
from metamorph.generation.messages import Message
from metamorph.generation.reading import Reader
from metamorph.generation.settings import DEFAULT_ANSWER, AnswerSettings
from metamorph.generation.text_stream import TextStream
from metamorph.model.inference import cast_weights, merge_projections, store_by_columns
from metamorph.model.precision import autocast, check_precision, convert_to_generate
from metamorph.model.quantization import check_weights, quantize_weights
from metamorph.model.saved_tokenizer import read_saved_tokenizer
from metamorph.model.tokenizer import open_tokenizer
from metamorph.model.unified import MetaMorph


@dataclass(frozen=True)
class Status:
    """How much is under way: requests that wait for a slot, those that have one of `slots`, and
    pictures that wait for the decoder or are being drawn."""

    waiting: int
    active: int
    slots: int
    drawing: int


class Assistant:
    """Model, tokenizer and, if the folder has one, diffusion decoder.

    `generate` answers conversations, `stream` tells what happens meanwhile. Behind both stand
    `submit`, `advance` and `cancel`, for whoever answers many at once. Not thread-safe.
    """

    def __init__(
        self,
        model: MetaMorph,
        tokenizer,
        decoder: Decoder | None = None,
        *,
        preview: Decoder | None = None,
        precision: str = "fp32",
        options: EngineOptions = DEFAULT_OPTIONS,
    ):
        config, limit = model.config, model.config.language.max_position_embeddings
        if options.context is not None and options.context > limit:
            raise UserError(f"context: the model has positions for {limit}, got {options.context}")
        self.model = model.eval()
        self.precision = precision
        self.encoder = ChatEncoder(tokenizer, config.tokens_per_image, config.prompt_images)
        self.reader = Reader(model, self.encoder)
        self._decoder = decoder
        self.device = model.projector.linear_1.weight.device
        with self._autocast():
            self.engine = Engine(model, options)
        self.queue = None if decoder is None else DrawingQueue(decoder, preview=preview)
        self.answers: list[Answer] = []  # those that have not finished
        self._lead = 0.0  # seconds that tokens have taken more than pictures

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: torch.device | str = "cpu",
        *,
        decoder: str | Path | None = None,
        preview_decoder: str | Path | None = None,
        decoder_options: DecoderOptions = DEFAULT_DECODER_OPTIONS,
        precision: str = "fp32",
        fp8_backend: str = "torchao",
        weights: str = "",
        options: EngineOptions = DEFAULT_OPTIONS,
        open_when_needed: bool = False,
    ) -> "Assistant":
        """Loads what the quickstart or `metamorph train` saved.

        `decoder` is the folder of the decoder, if not that in the model folder, and computes as
        `decoder_options` say; `preview_decoder` is one in one pass, which shows it before, in the
        same precision. `precision` and `fp8_backend` are of the language model and mean what they
        mean in training; weights keep the file's dtype, or are rounded once to what products are
        computed in: bfloat16, or `weights`, int8 or float8, which take half of that. Raises
        `UserError`.

        With `open_when_needed` the files of encoder and decoder are checked now, but opened, and
        their libraries imported, with the first picture that is read or drawn: for a process that
        asks once, and does nothing else with diffusers.
        """
        check_precision(precision, fp8_backend, torch.device(device))
        check_weights(weights, precision, torch.device(device))
        decoder_options.check("diffusion", torch.device(device))  # before any weights are read
        folder = Path(folder)
        model = MetaMorph.from_pretrained(folder, device, open_vision=not open_when_needed)
        merge_projections(model)
        if weights:
            quantize_weights(model, weights)
        if precision == "fp8":
            convert_to_generate(model, fp8_backend)
        elif precision == "bf16":
            cast_weights(model, torch.bfloat16)
        store_by_columns(model)
        tokenizer, _ = open_tokenizer(ModelConfig(folder=str(folder)), read_saved_tokenizer)
        drawing = decoder_of(folder, model, device, decoder, decoder_options, open_when_needed)
        preview = None
        if preview_decoder is not None:
            preview = preview_of(preview_decoder, drawing, model, device, decoder_options.precision)
        return cls(model, tokenizer, drawing, preview=preview, precision=precision, options=options)

    @property
    def decoder(self):
        """The decoder or None; one that waits to be opened is opened now. Raises `UserError`."""
        return None if self._decoder is None else opened(self._decoder)

    def generate(
        self,
        conversations: abc.Sequence[abc.Sequence[Message]],
        settings: AnswerSettings | abc.Sequence[AnswerSettings] = DEFAULT_ANSWER,
        *,
        reencode: bool = False,
    ) -> list[Reply]:
        """The next turn of each conversation, in order; settings for all, or for each.

        A reply depends on its own conversation and settings alone. Raises `UserError` for a
        conversation that cannot be answered, before anything is, and where an answer fails.
        """
        alike = isinstance(settings, AnswerSettings)
        given = [settings] * len(conversations) if alike else list(settings)
        if len(given) != len(conversations):
            raise ValueError(
                f"settings: expected one for each of {len(conversations)} conversations, "
                f"got {len(given)}"
            )
        waiting = zip([*map(self._document, conversations, given)], given, strict=True)
        answers: list[Answer] = []
        try:
            while self.advance() or len(answers) < len(conversations):
                for answer in self.answers:
                    answer.events.clear()
                free = max(0, 2 * self.engine.options.slots - len(self.answers))
                answers += [self._queue(*one, reencode) for one in islice(waiting, free)]
        finally:
            for answer in answers:
                self.cancel(answer)
        replies = [answer.reply for answer in answers]
        for reply in replies:
            if reply.error:
                raise UserError(reply.error)
        return replies

    def stream(
        self,
        messages: abc.Sequence[Message],
        settings: AnswerSettings = DEFAULT_ANSWER,
        *,
        reencode: bool = False,
    ) -> abc.Iterator[Event]:
        """What happens while the next turn is made; `Finished` comes last. Closing the iterator
        cancels. Raises `UserError` for a conversation that cannot be answered."""
        return self._events(self.submit(messages, settings, reencode=reencode))

    def _events(self, answer: Answer) -> abc.Iterator[Event]:
        try:
            while answer.events or not answer.finished:
                while answer.events:
                    yield answer.events.popleft()
                if not answer.finished:
                    self.advance()
        finally:
            self.cancel(answer)

    def submit(
        self,
        messages: abc.Sequence[Message],
        settings: AnswerSettings = DEFAULT_ANSWER,
        *,
        reencode: bool = False,
    ) -> Answer:
        """Queue the next turn of a conversation, which ends with the user's.

        The model reads its own pictures of earlier turns as the features that it predicted, not
        from their pixels; with `reencode` it sees them again. What the cache holds of earlier turns
        is not computed again. Raises `UserError`, before any work on the device, for turns out of
        order and for a conversation that is with its answer too long.
        """
        return self._queue(self._document(messages, settings), settings, reencode)

    def _queue(self, document: Document, settings: AnswerSettings, reencode: bool) -> Answer:
        with self._autocast():
            prompt = self.reader.prompt(document, reencode)
        job = self.engine.submit(
            prompt,
            max_new_tokens=settings.max_new_tokens,
            sampling=settings.sampling,
            max_images=settings.max_images,
        )
        text = TextStream(self.encoder.tokenizer, settings.stop)
        draws = settings.drawing is not None and self.queue is not None
        self.answers.append(Answer(job, settings, text, draws))
        return self.answers[-1]

    def cancel(self, answer: Answer) -> None:
        """Ends an answer with what it has; the next `advance` says so."""
        if answer.finished:
            return
        with self._autocast():
            self.engine.cancel(answer.job)
        answer.cancel()
        if self.queue is not None:
            self.queue.cancel(answer)

    def advance(self) -> bool:
        """One round of work for all answers, whose events say what came of it: newcomers are
        admitted, a chunk of prompts is read, and everyone takes a few steps; or, if pictures have
        had less time than tokens, one denoising step. False once nothing is left to do."""
        began = time.perf_counter()
        with self._autocast():
            emitted = self.engine.advance()
        by_job = {answer.job: answer for answer in self.answers}
        for job, steps in emitted:
            if (answer := by_job.get(job)) is not None:
                self._accept(answer, steps)
        drawing_began = time.perf_counter()
        self._lead += drawing_began - began
        if self.queue and (self._lead >= 0 or not (self.engine.active or self.engine.waiting)):
            for answer, event in self.queue.advance():
                assert isinstance(answer, Answer)
                answer.accept_drawing(event)
            self._lead -= time.perf_counter() - drawing_began
        if not self.queue:
            self._lead = 0.0
        self.answers = [answer for answer in self.answers if not answer.finish_if_done()]
        return bool(self.answers)

    def _accept(self, answer: Answer, steps: list) -> None:
        for number, features in answer.accept(steps):
            if answer.draws:
                assert self.queue is not None and answer.settings.drawing is not None
                self.queue.add(
                    features,
                    seed=answer.settings.sampling.seed,
                    number=number,
                    settings=answer.settings.drawing,
                    key=answer,
                )
        if answer.stopped:
            self.engine.cancel(answer.job, "stop")

    def status(self) -> Status:
        engine, drawing = self.engine, len(self.queue or ())
        return Status(len(engine.waiting), engine.active, engine.options.slots, drawing)

    def _autocast(self) -> torch.autocast:
        return autocast(self.precision, self.device)

    def _document(self, messages: abc.Sequence[Message], settings: AnswerSettings) -> Document:
        """The conversation as tokens. `UserError` if it cannot be answered."""
        if settings.drawing is not None:
            check_drawing(self._decoder, settings.drawing)
        document = self.reader.document(messages)
        length, limit = len(document), self.engine.context
        if length + settings.max_new_tokens > limit:
            raise ContextFull(
                f"conversation: its {length} tokens and max_new_tokens {settings.max_new_tokens} "
                f"exceed the context of {limit} tokens"
            )
        return document

    def draw(
        self, features: abc.Sequence[Tensor], *, seed: int = 0, **options: Any
    ) -> list[Image.Image]:
        """Pictures of the features [tokens, C] of one answer. Raises `UserError`.

        The noise of a picture depends on the seed and its number in the answer, on nothing else.
        `options`: `num_inference_steps`, `guidance_scale` and the others of `VisualDecoder.draw`.
        """
        [pictures] = self.draw_batch([features], seeds=[seed], **options)
        return pictures

    def draw_batch(
        self,
        answers: abc.Sequence[abc.Sequence[Tensor]],
        *,
        seeds: abc.Sequence[int],
        **options: Any,
    ) -> list[list[Image.Image]]:
        """What `draw` gives for each of several answers and its seed, in batches."""
        if self._decoder is None:
            raise UserError(
                f"{self.model.folder} has no decoder/, it cannot draw pixels; name one that was "
                f"trained apart as decoder=, or join both by `metamorph join`"
            )
        features = [image for images in answers for image in images]
        if not features:
            return [[] for _ in answers]
        generators = [
            noise_generator(seed, index)
            for images, seed in zip(answers, seeds, strict=True)
            for index in range(len(images))
        ]
        decoder = opened(self._decoder)
        pictures = iter(decoder.draw(torch.stack(features), generator=generators, **options))
        return [[next(pictures) for _ in images] for images in answers]
