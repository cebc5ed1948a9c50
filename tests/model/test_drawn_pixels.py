"""Tensors become what the encoder takes just as pictures do, and a gradient comes back."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SiglipVisionConfig

from metamorph.model.drawn_pixels import DrawnPixels
from metamorph.model.siglip import SiglipEncoder


def encoder(resample: Image.Resampling = Image.Resampling.BICUBIC) -> SiglipEncoder:
    config = SiglipVisionConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        image_size=48, patch_size=16,
    )  # fmt: skip
    return SiglipEncoder(config, 2, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.5), resample=resample)


def picture(side: int) -> Image.Image:
    """Smooth and hard edges, black and white, of which cubic filters overshoot."""
    values = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    values[: side // 2, : side // 2] = 0
    values[side // 2 :, : side // 2] = 255
    values[:, side // 2 :, 0] = np.linspace(0, 255, side)[:, None]
    return Image.fromarray(values)


@pytest.mark.parametrize("side", [32, 48, 64, 100])
@pytest.mark.parametrize(
    "resample",
    [
        Image.Resampling.BICUBIC,
        Image.Resampling.BILINEAR,
        Image.Resampling.LANCZOS,
        Image.Resampling.NEAREST,
    ],
)
def test_tensors_are_preprocessed_as_pictures_are(side, resample):
    """Within two grey levels: Pillow rounds after each of the two products."""
    vision = encoder(resample)
    drawn = picture(side)
    pixels = torch.from_numpy(np.array(drawn)).permute(2, 0, 1)[None] / 255
    difference = DrawnPixels(vision, side)(pixels) - vision.preprocess([drawn])
    levels = 255 * difference.abs() * torch.tensor(vision.std)[:, None, None]
    assert levels.max() < 2 and levels.mean() < 0.5


def test_bfloat16_around_it_costs_no_precision():
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    prepare = DrawnPixels(encoder(), 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prepare(pixels), prepare(pixels.float()))
    assert prepare(pixels.bfloat16()).dtype == torch.float32


def test_features_have_a_gradient_in_the_pixels():
    """Through the frozen encoder, equal to finite differences; none for what is cut off."""
    torch.manual_seed(0)
    vision = encoder().double()
    prepare = DrawnPixels(vision, 32).double()
    wanted = torch.randn(1, 4, 24, dtype=torch.float64)

    def similarity(pixels):
        return (vision(prepare(pixels)) * wanted).sum()

    pixels = torch.rand(1, 3, 32, 32, dtype=torch.float64).mul(0.8).add(0.1).requires_grad_()
    similarity(pixels).backward()
    assert all(parameter.grad is None for parameter in vision.parameters())
    direction = torch.randn_like(pixels)
    step = 1e-5 * direction
    with torch.no_grad():
        slope = (similarity(pixels + step) - similarity(pixels - step)) / 2e-5
    assert (pixels.grad * direction).sum().item() == pytest.approx(slope.item(), rel=1e-3)

    beyond = torch.full((1, 3, 32, 32), 1.5, requires_grad=True)
    similarity(beyond).backward()
    assert beyond.grad.abs().max() == 0
