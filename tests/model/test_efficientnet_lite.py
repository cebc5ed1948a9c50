"""An EfficientNet-Lite as a frozen encoder: its features, its files, and what is refused."""

import json
import shutil

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from metamorph.errors import UserError
from metamorph.model.efficientnet_lite import Convolution, EfficientNetLite
from metamorph.model.encoder_identity import identity, stored_identity
from metamorph_kernels import pool_normalize
from tests.tiny_run import GRID, write_efficientnet


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return write_efficientnet(tmp_path_factory.mktemp("efficientnet"))


@pytest.fixture
def folder(saved, tmp_path):
    """A copy, to be changed."""
    return shutil.copytree(saved, tmp_path / "encoder")


@pytest.fixture
def encoder(saved) -> EfficientNetLite:
    return EfficientNetLite.from_pretrained(saved, GRID)


def pictures(count: int = 2) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(count, 3, 64, 64)


def test_features_are_the_last_ones_pooled_to_the_grid(encoder):
    features = encoder(pictures())
    assert features.shape == (2, GRID**2, 24) == (2, encoder.tokens_per_image, encoder.width)
    last = encoder.encode(pictures())
    assert last.shape == (2, 8 * 8, 24) and last.min() >= 0  # 64 pixels, a stride of 8
    assert torch.equal(features, pool_normalize(last, GRID))
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(2, GRID**2))


def test_rows_of_the_picture_are_rows_of_the_features(encoder):
    """What changes below at the right changes the last feature and not the first."""
    before = pictures(1)
    after = before.clone()
    after[..., 56:, 56:] += 10
    changed = (encoder(before) - encoder(after)).abs().amax(-1)[0]
    assert changed[-1] > 1e-4 and changed[0] == 0


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (5, 1), (3, 2), (5, 2)])
def test_zeros_lie_around_as_in_tensorflow(kernel, stride):
    """The window of the first output begins (kernel - stride) // 2 before the picture."""
    convolution = Convolution(1, 1, kernel, stride).requires_grad_(False)
    found = convolution(torch.eye(8)[None, None])[0, 0]
    assert found.shape == (8 // stride, 8 // stride)
    before = (kernel - stride) // 2
    padded = torch.zeros(8 + 2 * kernel, 8 + 2 * kernel)
    padded[kernel : kernel + 8, kernel : kernel + 8] = torch.eye(8)
    for row in range(8 // stride):
        for column in range(8 // stride):
            top, left = (kernel - before + stride * place for place in (row, column))
            window = padded[top : top + kernel, left : left + kernel]
            expected = (window * convolution.weight[0, 0]).sum() + convolution.bias[0]
            torch.testing.assert_close(found[row, column], expected)


def test_it_stays_frozen_and_the_same_in_training(encoder):
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    before = encoder(pictures())
    encoder.train()
    assert torch.equal(encoder(pictures()), before)


def test_a_gradient_reaches_the_pixels(encoder):
    """As the perceptual loss of a decoder needs."""
    pixels = pictures().requires_grad_(True)
    encoder(pixels)[..., 0].sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().max() > 0
    assert encoder.stem.weight.grad is None


def test_no_pictures_give_no_features(encoder):
    assert encoder(encoder.preprocess([])).shape == (0, GRID**2, 24)


@pytest.mark.parametrize("precision", ["bfloat16", "autocast"])
def test_lower_precision_is_near(encoder, precision):
    whole = encoder(pictures())
    if precision == "bfloat16":
        encoder.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        features = encoder(pictures())
    assert features.dtype == torch.bfloat16
    torch.testing.assert_close(features.float(), whole, atol=0.05, rtol=0)


def test_operations_equal_the_counter(encoder):
    counter = FlopCounterMode(display=False)
    with counter:
        encoder(pictures(3))
    assert counter.get_total_flops() == 3 * encoder.operations()


def test_a_saved_folder_is_the_same_encoder(encoder, tmp_path):
    encoder.preprocess_by((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), Image.Resampling.NEAREST)
    encoder.save_pretrained(tmp_path / "saved")
    again = EfficientNetLite.from_pretrained(tmp_path / "saved", GRID)
    picture = [Image.effect_noise((50, 30), 90)]
    pixels = again.preprocess(picture)
    assert torch.equal(pixels, encoder.preprocess(picture))
    assert torch.equal(again(pixels), encoder(pixels))
    assert torch.equal(again.classify(pixels), encoder.classify(pixels))
    assert stored_identity(tmp_path / "saved", GRID) == identity(again) == identity(encoder)


def test_its_identity_is_of_all_that_decides_features(encoder, folder):
    known = identity(encoder)
    assert stored_identity(folder, GRID) == known != stored_identity(folder, GRID + 1)
    encoder.classifier.weight.fill_(0)
    assert identity(encoder) == known
    encoder.blocks[1].project.bias[0] += 1
    assert identity(encoder) != known
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": [0.4] * 3}))
    assert stored_identity(folder, GRID) != known


STAGE = {"expansion": 1, "width": 8, "blocks": 1, "stride": 1, "kernel": 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "siglip"}, "expected an EfficientNet-Lite, got 'siglip'"),
        ({"head_width": 0}, "head_width: expected a whole number, 1 to 100000, got 0"),
        ({"classes": "5"}, "classes: expected a whole number, 1 to 1000000, got '5'"),
        ({"image_size": 60}, "image_size: expected a multiple of 8, .* got 60"),
        ({"activation": "swish"}, "unknown key 'activation'"),
        ({"stages": []}, r"stages: expected a list of 1 to 100 of them, got \[\]"),
        ({"stages": [STAGE, 3]}, "stage 2: expected an object, got 3"),
        ({"stages": [STAGE | {"stride": 3}]}, "stage 1: stride: expected .* 1 to 2, got 3"),
        ({"stages": [STAGE | {"kernel": 4}]}, "stage 1: kernel: expected an odd number.* got 4"),
        ({"stages": [STAGE | {"kernel": 1, "stride": 2}]}, "stage 1: kernel: expected an odd"),
        ({"stages": [STAGE | {"squeeze": 4}]}, "stage 1: unknown key 'squeeze'"),
        ({"stages": [{"width": 8}]}, "stage 1: the key 'blocks' is missing"),
    ],
    ids=str,
)
def test_sizes_that_no_encoder_has_are_a_sentence_with_the_file(folder, change, message):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=f"{path}: {message}"):
        EfficientNetLite.from_pretrained(folder, GRID)


def test_what_does_not_fit_is_refused(folder):
    with pytest.raises(UserError, match="grid: expected 1 to 8, the encoder's own grid, got 9"):
        EfficientNetLite.from_pretrained(folder, 9)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stem_width": 10}))
    with pytest.raises(UserError, match="'stem.weight' has shape .* needs"):
        EfficientNetLite.from_pretrained(folder, GRID)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="model.safetensors"):
        EfficientNetLite.from_pretrained(folder, GRID)
