"""Model folders with one broken file: they answer and draw, or are refused in one line."""

from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
import torch

from metamorph.decoder.adapter import FeatureAdapter
from metamorph.decoder.pipeline import VisualDecoder
from metamorph.decoder.samplers import sampler
from metamorph.generation.assistant import Assistant  # noqa: F401  loaded before the clock starts
from metamorph.model import assemble
from tests.fuzz.breaking import break_file, linked_copy
from tests.fuzz.harness import run_cli
from tests.tiny_run import GRID, tiny_diffusion, write_language, write_vision

FEATURE_WIDTH = 24  # of the tiny encoder


def write_model(folder: Path) -> None:
    parts = write_language(folder / "parts/llama"), write_vision(folder / "parts/siglip")
    torch.manual_seed(0)
    model, tokenizer = assemble(*parts, grid=GRID)
    model.save_pretrained(folder / "model", tokenizer)
    vae, unet, noise = tiny_diffusion()
    adapter = FeatureAdapter(FEATURE_WIDTH, 16, unet.config.cross_attention_dim)
    decoder = VisualDecoder(vae, unet, sampler("dpm++", noise.config), adapter, 2.0, 2)
    decoder.save_pretrained(folder / "model/decoder")


def attack_model(chance: Random, folder: Path) -> str:
    with TemporaryDirectory() as below:
        copy = Path(below, "model")
        linked_copy(folder / "model", copy)
        break_file(chance, copy)
        return run_cli(
            "generate",
            "a red circle",
            "--model",
            str(copy),
            "--max-new-tokens",
            "8",
            "--save-to",
            below,
        )


@pytest.mark.slow
def test_model_folders(fuzzed, tmp_path):
    write_model(tmp_path)
    fuzzed(attack_model, 200)


def attack_parts(chance: Random, folder: Path) -> str:
    with TemporaryDirectory() as below:
        copy = Path(below, "parts")
        linked_copy(folder / "parts", copy)
        break_file(chance, copy)
        return run_cli(
            "train", "configs/toy/align.yaml", "--dry-run", "--model.language", f"{copy}/llama",
            "--model.vision", f"{copy}/siglip", "--model.grid", str(GRID), "--model.folder", "",
        )  # fmt: skip


@pytest.mark.slow
def test_folders_of_language_and_vision(fuzzed, tmp_path):
    write_model(tmp_path)
    fuzzed(attack_parts, 200)
