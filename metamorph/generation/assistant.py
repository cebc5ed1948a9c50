"""A trained model to talk to: text and pictures in, text and pictures out."""

from collections import abc
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from metamorph.config import ModelConfig
from metamorph.data.conversation import USER, ChatEncoder, Document, Sample, Turn, images_first
from metamorph.decoder.pipeline import VisualDecoder, noise_generator
from metamorph.errors import SampleError, UserError
from metamorph.generation.engine import Prompt, generate
from metamorph.generation.sampling import GREEDY, Sampling
from metamorph.generation.sequence import Generation, ImageSegment
from metamorph.model.precision import autocast, check_precision, convert_to_float8
from metamorph.model.tokenizer import open_tokenizer
from metamorph.model.unified import MetaMorph
from metamorph.tokens import IMAGE_PLACEHOLDER


@dataclass(frozen=True)
class Reply:
    """An answer in order: strings, and features [tokens, C] where the model drew."""

    segments: tuple[str | Tensor, ...]
    finish_reason: str  # "stop" or "length"

    @property
    def text(self) -> str:
        return " ".join(segment for segment in self.segments if isinstance(segment, str))

    @property
    def features(self) -> list[Tensor]:
        return [segment for segment in self.segments if not isinstance(segment, str)]


class Assistant:
    """Model, tokenizer and, if the folder has one, diffusion decoder."""

    def __init__(
        self,
        model: MetaMorph,
        tokenizer,
        decoder: VisualDecoder | None = None,
        *,
        precision: str = "fp32",
    ):
        self.model = model.eval()
        self.precision = precision
        self.encoder = ChatEncoder(tokenizer, model.config.tokens_per_image)
        self.decoder = decoder

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: torch.device | str = "cpu",
        *,
        decoder: str | Path | None = None,
        precision: str = "fp32",
        fp8_backend: str = "torchao",
    ) -> "Assistant":
        """Loads what the quickstart or `metamorph train` saved.

        `decoder` is the folder of the diffusion decoder, if not that in the model folder.
        `precision` and `fp8_backend` are of the language model and mean what they mean in
        training; weights keep the file's dtype. Raises `UserError`.
        """
        check_precision(precision, fp8_backend, torch.device(device))
        folder = Path(folder)
        model = MetaMorph.from_pretrained(folder, device)
        if precision == "fp8":
            convert_to_float8(model, fp8_backend)
        tokenizer, _ = open_tokenizer(ModelConfig(folder=str(folder)))
        drawing = None
        if decoder is None and (folder / "decoder").exists():
            decoder = folder / "decoder"
        if decoder is not None:
            drawing = VisualDecoder.for_model(decoder, model.config, model.vision).to(device)
        return cls(model, tokenizer, drawing, precision=precision)

    def prompt(self, text: str, images: tuple[Image.Image, ...] = ()) -> Prompt:
        """Tokens and features of one user turn. Pictures without a placeholder come first."""
        return self._prompt(self._document(text, images), images)

    def _document(self, text: str, images: tuple[Image.Image, ...]) -> Document:
        turns = images_first((Turn(USER, text),), len(images))
        placeholders = turns[0].text.count(IMAGE_PLACEHOLDER)
        if placeholders != len(images):
            raise UserError(
                f"prompt: {placeholders} {IMAGE_PLACEHOLDER} placeholders but {len(images)} images"
            )
        try:
            return self.encoder.encode_prompt(Sample("prompt", turns, tuple(images)))
        except SampleError as error:
            raise UserError(f"prompt: {error}") from error

    def _prompt(self, document: Document, images: tuple[Image.Image, ...]) -> Prompt:
        positions = [p for first, end in document.spans for p in range(first, end)]
        features = None
        if images:
            encoder = self.model.encoder
            device = self.model.projector.linear_1.weight.device
            features = encoder(encoder.preprocess(list(images)).to(device))
        return Prompt(document.token_ids, positions, features)

    def reply(
        self,
        prompts: list[tuple[str, tuple[Image.Image, ...]]],
        *,
        max_new_tokens: int = 256,
        sampling: Sampling | abc.Sequence[Sampling] = GREEDY,
    ) -> list[Reply]:
        """Answers (text, images) pairs as one batch.

        `sampling` is one for all pairs or one for each, and an answer depends on its own alone:
        with a temperature, give generators of different seeds for different answers.
        Raises `UserError` if a prompt and its answer could exceed the model's positions.
        """
        documents = [self._document(*prompt) for prompt in prompts]
        self._check_lengths(documents, max_new_tokens)  # before any picture is encoded
        with autocast(self.precision, self.model.projector.linear_1.weight.device):
            encoded = [
                self._prompt(document, images)
                for document, (_, images) in zip(documents, prompts, strict=True)
            ]
            generations = generate(
                self.model,
                encoded,
                max_new_tokens=max_new_tokens,
                sampling=sampling,
            )
        return [self._reply(generation) for generation in generations]

    def _check_lengths(self, documents: list[Document], max_new_tokens: int) -> None:
        limit = self.model.config.language.max_position_embeddings
        for document in documents:
            if len(document) + max_new_tokens > limit:
                raise UserError(
                    f"prompt: its {len(document)} tokens and max_new_tokens "
                    f"{max_new_tokens} exceed the model's max_position_embeddings {limit}"
                )

    def _reply(self, generation: Generation) -> Reply:
        segments: list[str | Tensor] = []
        for segment in generation.segments:
            if isinstance(segment, ImageSegment):
                segments.append(segment.features)
            elif text := self.encoder.decode(segment.token_ids):
                segments.append(text)
        return Reply(tuple(segments), generation.finish_reason)

    def draw(
        self,
        features: abc.Sequence[Tensor],
        *,
        seed: int = 0,
        guidance_scale: float | None = None,
        sampling_steps: int | None = None,
    ) -> list[Image.Image]:
        """Pictures of the features [tokens, C] of one answer. Raises `UserError`.

        The noise of a picture depends on the seed and its number in the answer, on nothing else.
        """
        [pictures] = self.draw_batch(
            [features], seeds=[seed], guidance_scale=guidance_scale, sampling_steps=sampling_steps
        )
        return pictures

    def draw_batch(
        self,
        answers: abc.Sequence[abc.Sequence[Tensor]],
        *,
        seeds: abc.Sequence[int],
        guidance_scale: float | None = None,
        sampling_steps: int | None = None,
    ) -> list[list[Image.Image]]:
        """What `draw` gives for each of several answers and its seed, as one batch."""
        if self.decoder is None:
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
        pictures = iter(
            self.decoder(
                torch.stack(features),
                guidance_scale=guidance_scale,
                sampling_steps=sampling_steps,
                generators=generators,
            )
        )
        return [[next(pictures) for _ in images] for images in answers]
