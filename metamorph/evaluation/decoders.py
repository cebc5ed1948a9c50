"""How well a decoder draws: pictures are redrawn from their own features, and from those that a
model predicts of their captions, and what was drawn is encoded again."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance
from tqdm import tqdm

from metamorph.decoder.denoising import noise_generator
from metamorph.decoder.files import DecoderSettings
from metamorph.decoder.kinds import OpenedDecoder
from metamorph.errors import UserError
from metamorph.evaluation.held_out_pictures import HeldOutPicture, HeldOutPictures, in_batches
from metamorph.evaluation.learned_scores import ClipScore
from metamorph.evaluation.measures import Measures
from metamorph.evaluation.similarity import token_cosines
from metamorph.generation.settings import DEFAULT_DRAWING, DrawingSettings
from metamorph.model.encoder_identity import identity
from metamorph.model.vision import VisionEncoder
from metamorph.pixels import Square


@dataclass(frozen=True)
class DrawingOptions:
    """How pictures are drawn. The noise of a picture comes from `seed` and its number alone."""

    seed: int = 0
    batch: int = 16  # pictures at once
    settings: DrawingSettings = DEFAULT_DRAWING

    def without_diffusion(self) -> "DrawingOptions":
        """The same for a decoder that draws in one pass."""
        return replace(self, settings=DEFAULT_DRAWING)


@dataclass(frozen=True)
class DecoderScores:
    """What was measured of drawings from pictures' own features and from `predicted` ones; and of
    the pictures themselves in the size of drawings, which no decoder can be expected to pass."""

    original: Measures
    own: Measures
    predicted: Measures | None

    def drawn(self) -> dict[str, Measures]:
        """Of drawings, by what they were drawn from."""
        return {"own": self.own} | ({"predicted": self.predicted} if self.predicted else {})

    def all(self) -> dict[str, Measures]:
        return self.drawn() | {"original": self.original}


def grid_of(folder: Path, settings: DecoderSettings, otherwise: int) -> int:
    """Tokens a side of the pictures that a decoder draws from; `otherwise` where its folder does
    not say. Raises `UserError` for tokens that fill no square."""
    if settings.tokens_per_image is None:
        return otherwise
    grid = math.isqrt(settings.tokens_per_image)
    if grid == 0 or grid * grid != settings.tokens_per_image:
        raise UserError(
            f"{folder}: it draws from pictures of {settings.tokens_per_image} tokens, which fill "
            f"no square"
        )
    return grid


def check_encoder(
    folder: Path, settings: DecoderSettings, vision: VisionEncoder, vision_folder: Path
) -> None:
    """Raises `UserError` unless a decoder draws from the features of this encoder."""
    if settings.feature_width != vision.width:
        raise UserError(
            f"{folder}: it draws from features of width {settings.feature_width}, but those of "
            f"{vision_folder} are of width {vision.width}"
        )
    if settings.encoder not in (None, identity(vision)):
        raise UserError(
            f"{folder}: it draws from features of another encoder than {vision_folder}: other "
            f"weights, or another normalisation or size of pictures"
        )


@torch.no_grad()
def encode(vision: VisionEncoder, pictures: Sequence[Image.Image]) -> Tensor:
    """Features [B, tokens, C] of pictures, on the CPU."""
    return vision(vision.preprocess([*pictures])).float().cpu()


def evaluate_decoder(
    decoder: OpenedDecoder,
    vision: VisionEncoder,
    pictures: HeldOutPictures,
    options: DrawingOptions,
    *,
    predicted: Sequence[Tensor | None] | None = None,
    clip: ClipScore | None = None,
    frechet: FrechetInceptionDistance | None = None,
    shown: int = 0,
) -> DecoderScores:
    """Redraws pictures and measures what came of it; at most `options.batch` are in memory.

    `predicted` has features [tokens, C] for each of the pictures in their order, None where a model
    drew nothing. `shown`: how many drawings are kept to be looked at.
    """

    def measures() -> Measures:
        return Measures(clip=clip, frechet=frechet, most_shown=shown)

    scores = DecoderScores(
        Measures(clip=clip, most_shown=shown), measures(), None if predicted is None else measures()
    )
    for batch in in_batches(tqdm(pictures, desc="redraw", mininterval=1), options.batch):
        features = encode(vision, [one.picture for one in batch])
        originals = _redraw(decoder, vision, batch, features, features, options, scores.own)
        scores.original.add(originals, batch, originals, encode(vision, originals), features)
        if scores.predicted is not None and predicted is not None:
            given = {row: predicted[one.number] for row, one in enumerate(batch)}
            found = {row: tokens for row, tokens in given.items() if tokens is not None}
            for row in given.keys() - found.keys():
                scores.predicted.add_undrawn(batch[row])
            if found:
                rows, tokens = [*found], torch.stack([*found.values()])
                real = [batch[row] for row in rows]
                _redraw(decoder, vision, real, features[rows], tokens, options, scores.predicted)
    return scores


def _redraw(
    decoder: OpenedDecoder,
    vision: VisionEncoder,
    real: Sequence[HeldOutPicture],
    real_features: Tensor,
    given: Tensor,
    options: DrawingOptions,
    measures: Measures,
) -> list[Image.Image]:
    """Draws the features `given` [B, tokens, C], measures what came of it, and returns the pictures
    in the size of drawings."""
    generators = [noise_generator(options.seed, one.number) for one in real]
    began = time.perf_counter()
    drawn = decoder.draw(
        given,
        generator=generators,
        batch_size=len(given),
        **options.settings.arguments(),
    )
    # They are on the CPU: nothing is under way on a device any more.
    measures.seconds.append((time.perf_counter() - began) / len(drawn))
    square = Square(drawn[0].width, Image.Resampling.LANCZOS)  # as training makes them small
    originals = [square(one.picture) for one in real]
    again = encode(vision, drawn)
    measures.add(drawn, real, originals, again, real_features)
    measures.keep("cosine_to_given", token_cosines(again, given), real)
    return originals
