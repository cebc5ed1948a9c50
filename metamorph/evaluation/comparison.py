"""Several decoders side by side, on the same pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image

from metamorph.config import ModelConfig
from metamorph.data.images import shorten
from metamorph.decoder.kinds import open_decoder, read_settings
from metamorph.errors import UserError
from metamorph.evaluation.contact_sheet import ComparisonRow, comparison_sheet
from metamorph.evaluation.decoders import (
    DecoderScores,
    DrawingOptions,
    check_encoder,
    evaluate_decoder,
    grid_of,
)
from metamorph.evaluation.held_out_pictures import HeldOutPictures
from metamorph.evaluation.learned_scores import FEATURES, ClipScore, inception_file, open_frechet
from metamorph.evaluation.predictions import predict
from metamorph.folders import check_folder
from metamorph.model.encoders import open_vision
from metamorph.model.unified import MetaMorphConfig

WITHOUT_CLIP = (
    "CLIP score was not measured: it needs the weights of a CLIP, and nothing is downloaded "
    "unasked; --clip FOLDER names one of Hugging Face"
)


@dataclass(frozen=True)
class Weights:
    """Where other networks lie: an encoder's folder, or a model folder for its encoder; a model
    that predicts features; Inception for FID; a CLIP. None is not at hand."""

    vision: Path
    model: Path | None = None
    inception: Path | None = None
    clip: Path | None = None


class Comparison:
    """Decoders and what they are measured with, checked and opened but for the decoders themselves.

    `notes` are sentences on what is not measured. Raises `UserError` for a folder or file that
    cannot be used.
    """

    def __init__(self, folders: Sequence[Path], weights: Weights, device: torch.device):
        self.device, self.weights = device, weights
        settings = {folder: read_settings(folder) for folder in folders}
        self.kinds = {folder: of.kind for folder, of in settings.items()}
        self.encoder, otherwise = _encoder_of(check_folder(weights.vision))
        self.grids = {folder: grid_of(folder, of, otherwise) for folder, of in settings.items()}
        self.encoders = {
            grid: open_vision(self.encoder, grid).to(device)
            for grid in sorted({*self.grids.values()})
        }
        for folder, of in settings.items():
            check_encoder(folder, of, self.encoders[self.grids[folder]], self.encoder)
        inception, without_fid = inception_file(weights.inception)
        self.frechet = None if inception is None else open_frechet(inception, device)
        self.clip = None if weights.clip is None else ClipScore(weights.clip, device)
        self.notes = [without_fid] if inception is None else []
        if self.clip is None:
            self.notes.append(WITHOUT_CLIP)
        self.predicted_grid = None
        if weights.model is not None:
            self.predicted_grid = MetaMorphConfig.read(weights.model).grid
            self.notes += [
                f"{folder} was drawn from own features alone: it takes {grid**2} a picture, and "
                f"{weights.model} predicts {self.predicted_grid**2}"
                for folder, grid in self.grids.items()
                if grid != self.predicted_grid
            ]

    def run(
        self, pictures: HeldOutPictures, options: DrawingOptions, shown: int
    ) -> tuple[dict, Image.Image]:
        """Scores of each decoder as plain values for JSON, and a sheet of what they drew of the
        first `shown` pictures. Raises `UserError` where no picture can be used."""
        if next(iter(pictures), None) is None:
            problems = "; ".join(pictures.skips.examples.values()) or "it has none"
            raise UserError(f"--data: no picture of {pictures.name} can be used: {problems}")
        predicted = None
        if self.weights.model is not None:
            predicted = predict(self.weights.model, pictures, self.device, options.batch)
        scores: dict[Path, DecoderScores] = {}
        for folder, grid in self.grids.items():
            decoder = open_decoder(folder, self.device)
            decoder.set_progress_bar_config(disable=True)
            # A one-pass decoder has neither steps nor guidance.
            own = options if self.kinds[folder] == "diffusion" else options.without_diffusion()
            scores[folder] = evaluate_decoder(
                decoder, self.encoders[grid], pictures, own,
                predicted=predicted if grid == self.predicted_grid else None,
                clip=self.clip, frechet=self.frechet, shown=shown,
            )  # fmt: skip
        return self._report(pictures, options, scores), _sheet(pictures, scores, shown)

    def _report(
        self, pictures: HeldOutPictures, options: DrawingOptions, scores: dict[Path, DecoderScores]
    ) -> dict:
        counted = next(iter(scores.values())).original.count
        notes = [*self.notes]
        if self.frechet is not None and counted < FEATURES:
            notes.append(
                f"FID of {counted} pictures is too high, and only compares decoders on the same "
                f"pictures; it takes at least {FEATURES}, and 10,000 are usual"
            )
        if options != options.without_diffusion():
            notes += [
                f"{folder} draws in one pass: --drawing-steps, --sampler and guidance are not for "
                f"it"
                for folder, kind in self.kinds.items()
                if kind != "diffusion"
            ]
        for cause, (count, example) in pictures.skips.by_cause().items():
            notes.append(
                f"skipped {count} of {pictures.skips.tried} samples: {cause} (first: {example})"
            )
        return {
            "data": {"name": pictures.name, "pictures": counted} | pictures.skips.state_dict(),
            "encoder": str(self.encoder),
            "model": None if self.weights.model is None else str(self.weights.model),
            "drawing": {"batch": options.batch, **options.settings.arguments()},
            "decoders": [
                {
                    "decoder": str(folder),
                    "kind": self.kinds[folder],
                    "tokens_per_image": self.grids[folder] ** 2,
                    **{source: of.summary(options.seed) for source, of in found.all().items()},
                }
                for folder, found in scores.items()
            ],
            "notes": notes,
        }


def _encoder_of(folder: Path) -> tuple[Path, int]:
    """The encoder's folder that is given itself, or that of a model folder, and the tokens a side
    of a picture where a decoder does not say them."""
    if (folder / "encoder").is_dir():
        return folder / "encoder", MetaMorphConfig.read(folder).grid
    return folder, ModelConfig().grid


def _sheet(pictures: HeldOutPictures, scores: dict[Path, DecoderScores], shown: int) -> Image.Image:
    rows = []
    for one in islice(pictures, shown):
        drawn: dict[str, Image.Image | None] = {"original": one.picture}
        for folder, found in scores.items():
            for source, measures in found.drawn().items():
                drawn[f"{folder}, {source}"] = measures.shown.get(one.number)
        rows.append(ComparisonRow(shorten(one.caption), drawn))
    return comparison_sheet(rows)
