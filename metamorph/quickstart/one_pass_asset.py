"""The one-pass decoder that the quickstart shows beside its own: `make toy-assets` makes it."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import load_file, save_file

from metamorph.config.reading import load_config
from metamorph.config.shipped import configs_folder
from metamorph.training.loop import train


def build_one_pass_decoder(folder: Path, encoder: Path, steps: int) -> None:
    """Trains it on the features of the encoder in a folder, and writes it into `folder`."""
    with TemporaryDirectory() as output:
        overrides = {"output": output, "device": "cpu", "model.vision": str(encoder)}
        config = load_config(configs_folder() / "toy/decoder_rae.yaml", overrides)
        config.training.steps = steps
        copy_in_half_precision(train(config), folder)


def copy_in_half_precision(trained: Path, folder: Path) -> None:
    """Copies a trained one-pass decoder, without the code that opens it where `metamorph` is not
    installed."""
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("*.py"), dirs_exist_ok=True)
    weights = folder / "vit/diffusion_pytorch_model.safetensors"
    halves = {name: tensor.half() for name, tensor in load_file(weights).items()}
    save_file(halves, weights, metadata={"format": "pt"})
