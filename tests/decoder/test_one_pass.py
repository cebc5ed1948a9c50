"""The one-pass decoder: what it draws, how its folder is opened, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from metamorph.decoder.kinds import open_decoder, read_settings
from metamorph.decoder.one_pass import OnePassDecoder
from metamorph.decoder.vit_decoder import ViTDecoder
from metamorph.errors import UserError
from tests.pages import ROOT, blocks
from tests.tiny_run import tiny_one_pass

WEIGHTS = "vit/diffusion_pytorch_model.safetensors"


def features(count: int, tokens: int = 4, width: int = 24) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(count, tokens, width), dim=-1)


@pytest.fixture(scope="module")
def decoder() -> OnePassDecoder:
    return tiny_one_pass()


@pytest.fixture(scope="module")
def saved(decoder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one_pass") / "decoder"
    decoder.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """To be damaged."""
    return shutil.copytree(saved, tmp_path / "decoder")


def test_any_number_of_pictures_in_any_batch(decoder):
    """As PIL pictures, as numbers, and as tensors; 4, 9 or 16 tokens of a picture."""
    seen = features(5)
    whole = decoder.draw(seen, output_type="np")
    assert whole.shape == (5, 64, 64, 3) and 0 <= whole.min() < whole.max() <= 1
    parts = decoder.draw(seen, output_type="np", batch_size=2)
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    tensors = decoder.draw(seen, output_type="pt")
    np.testing.assert_array_equal(tensors.permute(0, 2, 3, 1).numpy(), whole)
    for drawn, values in zip(decoder.draw(seen), whole, strict=True):
        assert drawn.size == (64, 64)
        np.testing.assert_array_equal(np.asarray(drawn), (values * 255).round().astype(np.uint8))
    for tokens in (9, 16):
        assert len(decoder.draw(features(2, tokens))) == 2
    assert decoder(seen).images[0].tobytes() == decoder.draw(seen)[0].tobytes()


def test_a_picture_is_the_same_for_every_seed(decoder):
    """It takes those of a diffusion decoder, and one step of the same kind."""
    seen = features(3)
    generators = [torch.Generator().manual_seed(number) for number in range(3)]
    expected = decoder.draw(seen, output_type="pt")
    for options in ({"seeds": [1, 2, 3]}, {"generator": generators}, {"num_inference_steps": 1}):
        assert torch.equal(decoder.draw(seen, output_type="pt", **options), expected)
    drawing = decoder.steps(
        seen, generator=generators, preview_every=1, guidance_scale=1, guidance_rescale=0.0,
        guidance_interval=(0.0, 1.0), output_type="pt",
    )  # fmt: skip
    assert len(drawing) == 1
    drawing.keep([2, 0])
    (step,) = drawing
    assert (step.step, step.steps, step.previews) == (1, 1, None)
    torch.testing.assert_close(step.pictures, expected[[2, 0]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 20}, "num_inference_steps: expected 1, .* one pass, got 20"),
        ({"guidance_scale": 3.0}, "guidance_scale: expected 1, .* got 3.0"),
        ({"guidance_rescale": 0.7}, "guidance_rescale: this decoder draws in one pass"),
        ({"guidance_interval": (0.2, 1.0)}, "guidance_interval: this decoder draws in one pass"),
        ({"scheduler": "ddim"}, "scheduler: this decoder draws in one pass and has none, got ddim"),
        ({"output_type": "latent"}, "output_type: expected one of .* got 'latent'"),
        ({"seeds": [1]}, "seeds: expected one for each of 2 pictures, got 1"),
        ({"generator": [torch.Generator()]}, "generator: expected one for each of 2 pictures"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
    ],
)
def test_what_it_has_no_use_of(decoder, options, message):
    with pytest.raises(ValueError, match=message):
        decoder.draw(features(2), **options)


@pytest.mark.parametrize("shape", [(2, 4, 23), (4, 24), (0, 4, 24), (2, 5, 24)])
def test_features_of_another_shape(decoder, shape):
    with pytest.raises(ValueError, match="features"):
        decoder.draw(torch.zeros(shape))


def test_what_is_not_finite_is_not_shown(decoder):
    with pytest.raises(UserError, match="the decoder's pixels are NaN or infinite"):
        decoder.draw(features(2) * torch.nan)


def test_a_folder_comes_back(decoder, saved):
    opened = open_decoder(saved)
    assert isinstance(opened, OnePassDecoder)
    assert torch.equal(
        opened.draw(features(2), output_type="pt"), decoder.draw(features(2), output_type="pt")
    )
    settings = read_settings(saved)
    assert (settings.kind, settings.feature_width, settings.tokens_per_image) == ("rae", 24, 4)
    assert (settings.guidance_scale, settings.sampling_steps) == (1, 1)


PROCESS = """
import sys

for name in ("metamorph", "accelerate", "peft", "torchao", "transformers"):
    sys.modules[name] = None  # an import of it fails
saved, given, drawn = sys.argv[1:]
lines = sys.stdin.read().replace("torch.randn(3, 16, 96)", "torch.load(given)")
exec(lines.replace("runs/toy/decoder_rae/decoder", saved))
torch.save(pipeline.draw(features, output_type="pt"), drawn)
"""


@pytest.mark.slow
def test_diffusers_opens_it_without_metamorph(decoder, saved, tmp_path):
    """By the lines of its page, in a process that has never heard of us; and what that process
    saves is one of ours, with its code."""
    [lines] = blocks(ROOT / "docs/one_pass.md", "py")
    torch.save(features(3), tmp_path / "features.pt")
    files = [str(saved), str(tmp_path / "features.pt"), str(tmp_path / "pixels.pt")]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache")}
    subprocess.run(
        [sys.executable, "-I", "-c", PROCESS, *files],
        input=lines, text=True, check=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    drawn = torch.load(tmp_path / "pixels.pt", weights_only=True)
    torch.testing.assert_close(drawn, decoder.draw(features(3), output_type="pt"))
    again = open_decoder(tmp_path / "again")
    torch.testing.assert_close(again.draw(features(3), output_type="pt"), drawn)
    for path in saved.rglob("*.py"):
        assert (tmp_path / "again" / path.relative_to(saved)).read_text() == path.read_text()


def test_the_code_in_its_folder_names_nothing_of_metamorph_to_import(saved, folder):
    code = {path.name: path.read_text() for path in saved.rglob("*.py")}
    assert set(code) == {
        "pipeline.py", "denoising.py", "folder_code.py", "metamorph.decoder.vit_decoder.py",
    }  # fmt: skip
    for text in code.values():
        assert "from metamorph" not in text and "import metamorph" not in text
    for path in folder.rglob("*.py"):
        path.write_text("raise SystemExit")
    assert open_decoder(folder).feature_width == 24  # which never runs it


def test_its_tensors_are_those_of_an_autoencoder_of_diffusers(saved):
    """`AutoencoderRAE.decoder`, by name and shape."""
    from diffusers import AutoencoderRAE

    rae = AutoencoderRAE(
        encoder_type="mae", encoder_hidden_size=64, encoder_patch_size=8,
        encoder_num_hidden_layers=1, encoder_input_size=32, decoder_hidden_size=16,
        decoder_num_hidden_layers=2, decoder_num_attention_heads=2, decoder_intermediate_size=64,
        patch_size=16,
    )  # fmt: skip
    theirs = {n: tuple(t.shape) for n, t in rae.state_dict().items() if n.startswith("decoder.")}
    ours = {name: tuple(tensor.shape) for name, tensor in load_file(saved / WEIGHTS).items()}
    assert ours.pop("decoder.decoder_embed.weight") == (16, 24)
    assert theirs.pop("decoder.decoder_embed.weight") == (16, 64)
    assert ours == theirs


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("model_index.json", {"vit": ["diffusers", "UNet"]}, "vit is .*'UNet'.*, expected"),
        ("model_index.json", {"tokens_per_image": "4"}, "tokens_per_image is '4', expected int"),
        ("model_index.json", {"encoder": 7}, "encoder is 7, expected str"),
        ("vit/config.json", {"hidden_size": None}, "hidden_size is None, expected a whole number"),
        ("vit/config.json", {"hidden_size": True}, "hidden_size is True, expected a whole number"),
        ("vit/config.json", {"decoder_num_hidden_layers": 10**9}, "expected a whole number, 1 to"),
        ("vit/config.json", {"image_size": 0}, "image_size is 0, expected a whole number"),
        ("vit/config.json", {"decoder_num_attention_heads": 3}, "multiple of 4 and of its 3 heads"),
        ("vit/config.json", {"patch_size": 32}, "16 patches of 32 pixels do not make .* 64 x 64"),
    ],
)
def test_a_folder_that_says_nonsense(folder, file, values, message):
    change(folder / file, **values)
    with pytest.raises(UserError, match=message) as refused:
        read_settings(folder)
    assert str(folder / file) in str(refused.value) and "\n" not in str(refused.value)


def test_files_that_are_missing_or_damaged(folder):
    weights = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(weights[:100])
    with pytest.raises(UserError, match="damaged safetensors file"):
        open_decoder(folder)
    (folder / WEIGHTS).rename(folder / "vit/diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="a pickle, which is never opened"):
        open_decoder(folder)
    shutil.rmtree(folder / "vit")
    with pytest.raises(UserError, match="vit"):
        open_decoder(folder)
    (folder / "model_index.json").write_text("{oops")
    with pytest.raises(UserError, match="model_index.json: not readable as JSON"):
        open_decoder(folder)
    with pytest.raises(UserError, match="nowhere"):
        open_decoder(folder / "nowhere")


def test_weights_of_other_sizes(folder):
    change(folder / "vit/config.json", decoder_intermediate_size=32)
    with pytest.raises(UserError, match="vit: cannot be loaded"):
        open_decoder(folder)


def test_positions_are_computed_not_stored(saved):
    """As diffusers has it: so a file of weights has no buffer that could be of another size."""
    assert not any("pos_embed" in name for name in load_file(saved / WEIGHTS))
    vit = ViTDecoder.from_pretrained(saved / "vit")
    assert vit.decoder.decoder_pos_embed.abs().max() > 0
