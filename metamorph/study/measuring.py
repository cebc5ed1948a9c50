"""One training of a study: what it starts from, the training itself, its scores."""

import shutil
import time
from dataclasses import asdict
from pathlib import Path

from metamorph.config import RunConfig
from metamorph.evaluation.report import versions
from metamorph.monitor.metrics_file import read_metrics
from metamorph.quickstart.run import build_start, stage_config
from metamorph.study.cells import Cell
from metamorph.study.samples import StudySamples
from metamorph.study.scale import Scale
from metamorph.study.scoring import scores_of
from metamorph.training.loop import train

SIZES = {  # of the language model: a training takes a third of what the quickstart's would
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
NEVER = 10**9  # steps between checkpoints: a training of a minute is done again from its start


def train_start(folder: Path, seed: int, cell: Cell, scale: Scale) -> None:
    """Writes the model folder that all cells like `cell` of a seed start from: a language model
    taught to speak of the toy world, and a projector aligned on descriptions alone, so that what a
    cell is taught of questions and drawings is what its amounts say."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    build_start(unfinished / "start", seed, SIZES)
    spoken_of = {"training.steps": scale.language_steps, "model.grid": cell.grid}
    shown = {
        "training.steps": scale.align_steps,
        "data.kinds": {"describe": 1.0},
        "model.prompt_images": cell.prompt_images,
    }
    train(stage_config("language", unfinished, {"seed": seed} | spoken_of))
    model = train(stage_config("align", unfinished, {"seed": seed} | shown))
    model.rename(folder)
    shutil.rmtree(unfinished)


def train_cell(work: Path, start: Path, cell: Cell, seed: int, scale: Scale) -> dict:
    """The record of a training: its cell and seed, scores, steps and seconds. JSON-able.

    `work` is a folder for the training, which is gone afterwards, like what a killed one left.
    """
    shutil.rmtree(work, ignore_errors=True)
    began = time.perf_counter()
    model = train(cell_config(work, start, cell, seed, scale), StudySamples(cell, seed))
    trained = time.perf_counter()
    scores = scores_of(model, cell, scale)
    record = {
        "cell": cell.described(),
        "seed": seed,
        "scores": scores,
        "steps": read_metrics(work)[-1]["step"],
        "seconds": {"training": trained - began, "scores": time.perf_counter() - trained},
        "scale": asdict(scale),
        "versions": versions(),
    }
    shutil.rmtree(work)
    return record


def cell_config(work: Path, start: Path, cell: Cell, seed: int, scale: Scale) -> RunConfig:
    """The toy's instruct stage, for the samples and by the options of a cell."""
    keys = {
        "output": str(work),
        "model.folder": str(start),
        "seed": seed,
        "data.row_length": scale.row_length,
        "training.steps": None,
        "training.epochs": cell.seen / len(StudySamples(cell, seed)),
        "training.learning_rate": scale.learning_rate,
        "training.visual_loss": cell.visual_loss,
        "training.visual_input_dropout": cell.visual_input_dropout,
        "training.visual_coefficient": cell.visual_coefficient,
        "training.checkpoint_every": NEVER,
    }
    return stage_config("instruct", work, keys)
