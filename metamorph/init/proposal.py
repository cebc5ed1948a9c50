"""The keys that are proposed for somebody's data, models and GPUs."""

import math
from dataclasses import dataclass, fields, replace

from metamorph.config import SourceConfig
from metamorph.config.keys import Stage
from metamorph.data.holdout import positions
from metamorph.data.opening import GENERATED, endless_parts
from metamorph.init.choices import Choice, config_of
from metamorph.init.found_data import FoundData
from metamorph.init.samples_seen import SeenSamples, see_samples
from metamorph.model.opening import language_sizes

GRID = 8
ROW_LENGTH = 4096  # of the recipes, where no sample was looked at
SHORTEST_ROW = 1024
STEPS_IN_EPOCH = 50  # at least, else a step is too large for so little data
SAMPLES_A_STEP, RATE = 512, 4e-5  # of the paper's rule, docs/recipes.md
PACKING = 0.95
HELD_OUT, HELD_OUT_FROM = 0.02, 200  # share, and samples from which on one is held out
TOKENS_A_SAMPLE = 500  # where none was looked at


@dataclass(frozen=True)
class Wishes:
    """What somebody said. `gpus`: 0 for a CPU; `memory`: GiB of one GPU, None where nobody knows.
    Folders are empty where they are not needed."""

    stage: Stage
    output: str
    data: FoundData
    gpus: int
    memory: float | None = None
    folder: str = ""
    language: str = ""
    vision: str = ""
    base: str = ""

    @property
    def processes(self) -> int:
        return max(self.gpus, 1)


def propose(wishes: Wishes) -> list[Choice]:
    """All keys of the run file, in its order. Raises `UserError` for data or models that cannot be
    used."""
    first = [
        Choice("stage", wishes.stage, WHAT[wishes.stage]),
        Choice("output", wishes.output, "the run folder, which must be new or empty"),
        *_model(wishes),
        *_data(wishes.data),
    ]
    seen = see_samples(config_of(first))
    if seen.in_epoch >= HELD_OUT_FROM and wishes.data.config.source not in GENERATED:
        why = "a share that is never trained on; losses of it tell when to stop"
        first.append(Choice("data.validation", HELD_OUT, why))
        seen = replace(seen, in_epoch=len(positions(seen.in_epoch, HELD_OUT, "training")))
    if wishes.stage == "decoder":
        return [*first, *_decoder_training(wishes, seen, first), *_gpus(wishes), *_decoder(wishes)]
    return [*first, *_language_training(wishes, seen, first), *_gpus(wishes)]


WHAT: dict[Stage, str] = {
    "align": "align: the projector learns to show pictures to the language model; first stage",
    "instruct": "instruct: everything but the encoder learns, to answer and to draw",
    "decoder": "decoder: visual features become pixels; apart from the language model",
}


def _model(wishes: Wishes) -> list[Choice]:
    if wishes.folder:
        return [Choice("model.folder", wishes.folder, "the model of the stage before")]
    choices = []
    if wishes.language:
        why = "a pretrained language model, which learns to see and to draw"
        choices.append(Choice("model.language", wishes.language, why))
    choices.append(Choice("model.vision", wishes.vision, "the encoder, which stays as it is"))
    tokens = f"a picture becomes {GRID} x {GRID} visual tokens, as in the paper"
    return [*choices, Choice("model.grid", GRID, tokens)]


def _data(data: FoundData) -> list[Choice]:
    why = {
        "source": data.what,
        "family": "what a record stands for: docs/data.md has all six",
        "path": "where they lie",
        "image_root": "where the names of pictures start from: there they were found",
        "fields": "fields that have other names in your records",
    }
    chosen, plain = data.config, SourceConfig()
    return [
        Choice(f"data.{entry.name}", getattr(chosen, entry.name), why[entry.name])
        for entry in fields(SourceConfig)
        if entry.name in why
        and (entry.name == "source" or getattr(chosen, entry.name) != getattr(plain, entry.name))
    ]


def _length(seen: SeenSamples, first: list[Choice]) -> list[Choice]:
    """Epochs, or steps where the data have no end."""
    if endless_parts(config_of(first).data):
        return [Choice("training.steps", 1000, "optimizer steps, for these data never end")]
    why = f"passes over the data, {seen.in_epoch:,} samples each"
    return [Choice("training.epochs", 1.0, why)]


def _precision(wishes: Wishes) -> Choice:
    if wishes.gpus:
        return Choice("training.precision", "bf16", "arithmetic of a step: fast on any new GPU")
    return Choice("training.precision", "fp32", "arithmetic of a step: float32 throughout")


def _language_training(wishes: Wishes, seen: SeenSamples, first: list[Choice]) -> list[Choice]:
    sizes = None
    start = config_of(first).model
    row, why = ROW_LENGTH, "tokens of a packed row, as in the recipes"
    if seen.longest:
        row = SHORTEST_ROW
        while row < seen.longest:
            row *= 2
        why = (
            f"tokens of a packed row; of {seen.looked_at} samples the longest has "
            f"{seen.longest:,}, the mean {seen.mean:,.0f}"
        )
        sizes = language_sizes(start)
    if sizes is not None and row > sizes.max_position_embeddings:
        row = sizes.max_position_embeddings
        why += f"; the model has no more positions than {row}, longer samples are skipped"
    in_row = max(row * PACKING / (seen.mean or TOKENS_A_SAMPLE), 1)
    rows = min(SAMPLES_A_STEP, seen.in_epoch / STEPS_IN_EPOCH) / in_row
    rows = wishes.processes * max(round(rows / wishes.processes), 1)
    in_step = rows * in_row
    rate = float(f"{RATE * math.sqrt(in_step / SAMPLES_A_STEP):.2g}")
    return [
        Choice("data.row_length", row, why),
        *_length(seen, first),
        Choice(
            "training.rows_per_step", rows,
            f"packed rows in an optimizer step, {rows // wishes.processes} on each process; "
            f"about {in_step:,.0f} samples",
        ),
        Choice(
            "training.learning_rate", rate,
            f"by the paper's rule, {RATE:g} x sqrt(samples of a step / {SAMPLES_A_STEP})",
        ),
        _precision(wishes),
    ]  # fmt: skip


def _gpus(wishes: Wishes) -> list[Choice]:
    if not wishes.gpus:
        return []
    return [Choice("parallel.gpus", wishes.gpus, "what `train --dry-run` plans for")]


def _decoder_training(wishes: Wishes, seen: SeenSamples, first: list[Choice]) -> list[Choice]:
    return [
        *_length(seen, first),
        Choice("training.learning_rate", 1e-4, "a usual one for a decoder; docs/training.md"),
        _precision(wishes),
    ]


def _decoder(wishes: Wishes) -> list[Choice]:
    batch = wishes.processes * max(32 // wishes.processes, 1)
    pictures = Choice(
        "decoder.batch_size", batch,
        f"pictures in an optimizer step, {batch // wishes.processes} on each process",
    )  # fmt: skip
    if wishes.base:
        base = Choice("decoder.base", wishes.base, "a pretrained diffusion model that draws")
        return [base, pictures]
    why = "a ViT from scratch that draws in one pass: no --base was given; docs/one_pass.md"
    return [Choice("decoder.kind", "rae", why), pictures]
