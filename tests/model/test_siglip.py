"""The encoder beside transformers' SigLIP, from either kind of folder."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import (
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

from metamorph.errors import UserError
from metamorph.model.siglip import SiglipEncoder
from metamorph_kernels import pool_normalize
from tests.pillow_processors import pillow_processor

SIZES = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
VISION = SIZES | {"num_attention_heads": 3, "image_size": 56, "patch_size": 8}
TEXT = SIZES | {"num_attention_heads": 3, "vocab_size": 11, "bos_token_id": 1, "eos_token_id": 2}


def official_vision() -> SiglipVisionModel:
    torch.manual_seed(0)
    model = SiglipVisionModel(SiglipVisionConfig(**VISION)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    return model


def pictures() -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 41, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    small = picture.resize((9, 30))
    return [picture, small.convert("L"), small.convert("RGBA"), small.convert("P")]


def preprocessor_of(folder, **settings):
    """Writes a preprocessor_config.json; the path."""
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(settings))
    return path


@pytest.fixture
def folder(tmp_path):
    official_vision().save_pretrained(tmp_path / "siglip")
    return tmp_path / "siglip"


def expected_features(model, pixel_values, grid):
    with torch.no_grad():
        last = model(pixel_values, output_hidden_states=True).hidden_states[-1]
    square = last.unflatten(1, (7, 7)).permute(0, 3, 1, 2)
    pooled = F.interpolate(square, size=(grid, grid), mode="bilinear", align_corners=False)
    return F.normalize(pooled.flatten(2).transpose(1, 2), dim=-1)


def test_features_equal_transformers(folder):
    encoder = SiglipEncoder.from_pretrained(folder, grid=3)
    pixel_values = torch.randn(2, 3, 56, 56)
    features = encoder(pixel_values)
    assert features.shape == (2, 9, 24) == (2, encoder.tokens_per_image, encoder.width)
    assert not features.requires_grad
    expected = expected_features(official_vision(), pixel_values, 3)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    normed = official_vision()(pixel_values).last_hidden_state
    assert (encoder.encode(pixel_values) - normed).abs().max() > 0.1  # not after post-layernorm


def test_a_whole_siglip_folder_gives_its_vision_half(tmp_path):
    vision, text = SiglipVisionConfig(**VISION), SiglipTextConfig(**TEXT)
    whole = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    whole.save_pretrained(tmp_path)
    encoder = SiglipEncoder.from_pretrained(tmp_path, grid=4)
    pixel_values = torch.randn(1, 3, 56, 56)
    official = SiglipVisionModel.from_pretrained(tmp_path).eval()
    expected = expected_features(official, pixel_values, 4)
    torch.testing.assert_close(encoder(pixel_values), expected, atol=1e-5, rtol=0)


def test_saved_folder_loads_here_and_in_transformers(folder, tmp_path):
    encoder = SiglipEncoder.from_pretrained(folder, grid=3)
    encoder.mean, encoder.std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    encoder.save_pretrained(tmp_path / "saved")
    again = SiglipEncoder.from_pretrained(tmp_path / "saved", grid=3)
    pixel_values = again.preprocess(pictures())
    assert torch.equal(pixel_values, encoder.preprocess(pictures()))
    assert torch.equal(again(pixel_values), encoder(pixel_values))
    official, report = SiglipVisionModel.from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not any(report.values()), report
    expected = expected_features(official.eval(), pixel_values, 3)
    torch.testing.assert_close(again(pixel_values), expected, atol=1e-5, rtol=0)


def test_preprocessing_equals_transformers(folder, tmp_path):
    encoder = SiglipEncoder.from_pretrained(folder, grid=3)
    encoder.mean = (0.4, 0.5, 0.6)
    encoder.save_pretrained(tmp_path / "saved")
    processor = pillow_processor("Siglip").from_pretrained(tmp_path / "saved")
    expected = processor(pictures(), return_tensors="pt").pixel_values
    torch.testing.assert_close(encoder.preprocess(pictures()), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("resample", [0, 1, 2, 3, 4, 5])
def test_each_way_to_resample_equals_transformers(folder, tmp_path, resample):
    preprocessor_of(folder, resample=resample, size=56)
    encoder = SiglipEncoder.from_pretrained(folder, grid=3)
    encoder.save_pretrained(tmp_path / "saved")
    processor = pillow_processor("Siglip").from_pretrained(tmp_path / "saved")
    assert processor.resample == resample
    expected = processor(pictures(), return_tensors="pt").pixel_values
    torch.testing.assert_close(encoder.preprocess(pictures()), expected, atol=1e-6, rtol=0)


def test_pictures_are_encoded_as_shown(folder):
    encoder = SiglipEncoder.from_pretrained(folder, grid=3)
    clear, white = Image.new("RGBA", (9, 9), (0, 0, 0, 0)), Image.new("RGB", (9, 9), "white")
    assert torch.equal(encoder.preprocess([clear]), encoder.preprocess([white]))


def test_no_pictures_give_no_features(folder):
    encoder = SiglipEncoder.from_pretrained(folder, grid=3)
    pixel_values = encoder.preprocess([])
    assert pixel_values.shape == (0, 3, 56, 56)
    assert encoder(pixel_values).shape == (0, 9, 24)


class TokensSeen:
    """Counts the tokens that modules of the last layer take."""

    def __init__(self, encoder):
        layer = encoder.tower.encoder.layers[-1]
        self.modules = {
            "query": layer.self_attn.q_proj,
            "key": layer.self_attn.k_proj,
            "value": layer.self_attn.v_proj,
            "out": layer.self_attn.out_proj,
            "norm": layer.layer_norm2,
            "mlp": layer.mlp,
        }
        self.tokens = {}
        for name, module in self.modules.items():
            module.register_forward_hook(
                lambda _, inputs, output, name=name: self.tokens.update({name: output.shape[1]})
            )


@pytest.mark.parametrize(
    ("grid", "read"), [(1, 1), (2, 16), (3, 25), (4, 49), (5, 49), (6, 49), (7, 49)]
)
@pytest.mark.parametrize("layers", [1, 2])
def test_the_last_layer_computes_only_what_is_read(grid, read, layers):
    torch.manual_seed(0)
    encoder = SiglipEncoder(SiglipVisionConfig(**VISION | {"num_hidden_layers": layers}), grid)
    encoder.tower.load_state_dict(official_vision().state_dict(), strict=False)
    seen = TokensSeen(encoder)
    pixel_values = torch.randn(2, 3, 56, 56)
    features = encoder(pixel_values)
    skipped = {"query": read, "key": 49, "value": 49, "out": read, "norm": read, "mlp": read}
    assert seen.tokens == skipped
    whole = pool_normalize(encoder.encode(pixel_values), grid)
    assert seen.tokens == dict.fromkeys(skipped, 49)
    torch.testing.assert_close(features, whole, atol=2e-6, rtol=0)
    assert read < 49 or torch.equal(features, whole)


def test_siglip_computes_256_of_729_tokens():
    config = SiglipVisionConfig(**VISION | {"image_size": 54, "patch_size": 2})
    encoder = SiglipEncoder(config, grid=8)
    seen = TokensSeen(encoder)
    pixel_values = torch.randn(1, 3, 54, 54)
    features = encoder(pixel_values)
    assert seen.tokens["mlp"] == seen.tokens["query"] == 256 and seen.tokens["key"] == 729
    whole = pool_normalize(encoder.encode(pixel_values), 8)
    torch.testing.assert_close(features, whole, atol=2e-6, rtol=0)


@pytest.mark.parametrize("precision", ["bfloat16", "autocast"])
def test_skipping_in_lower_precision(folder, precision):
    encoder = SiglipEncoder.from_pretrained(folder, grid=2)
    pixel_values = torch.randn(2, 3, 56, 56)
    if precision == "bfloat16":
        encoder.bfloat16()
        pixel_values = pixel_values.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        features = encoder(pixel_values)
        whole = pool_normalize(encoder.encode(pixel_values), 2)
    assert features.dtype == whole.dtype
    torch.testing.assert_close(features, whole, atol=1e-2, rtol=0)


def test_skipping_has_the_same_gradients(folder):
    gradients = []
    for function in (
        lambda encoder, pixels: encoder(pixels),
        lambda encoder, pixels: pool_normalize(encoder.encode(pixels), encoder.grid),
    ):
        encoder = SiglipEncoder.from_pretrained(folder, grid=3).requires_grad_(True)
        torch.manual_seed(0)
        features = function(encoder, torch.randn(2, 3, 56, 56))
        (features * torch.randn(features.shape)).sum().backward()
        gradients.append({name: tensor.grad for name, tensor in encoder.named_parameters()})
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_attention_dropout_acts_in_training_alone():
    config = SiglipVisionConfig(**VISION | {"num_hidden_layers": 1, "attention_dropout": 0.5})
    encoder = SiglipEncoder(config, grid=2)
    pixel_values = torch.randn(1, 3, 56, 56)
    assert torch.equal(encoder(pixel_values), encoder(pixel_values))
    encoder.train()
    assert not torch.equal(encoder(pixel_values), encoder(pixel_values))


def test_which_tokens_are_read_is_not_saved_and_moves_along(folder):
    encoder = SiglipEncoder.from_pretrained(folder, grid=3)
    assert "tokens_read" not in encoder.state_dict()
    assert encoder.tokens_read.device.type == "cpu" and encoder.tokens_read.dtype == torch.int64
    assert encoder.to("meta").tokens_read.device.type == "meta"


@pytest.mark.parametrize("place", ["layer", "attention"])
def test_a_layer_of_other_parts_is_refused_rather_than_half_computed(monkeypatch, place):
    known = SiglipEncoderLayer.__init__

    def changed(self, config):
        known(self, config)
        if place == "layer":
            self.layer_scale = torch.nn.Parameter(torch.ones(1))
        else:
            self.self_attn.q_norm = torch.nn.LayerNorm(8)

    monkeypatch.setattr(SiglipEncoderLayer, "__init__", changed)
    config = SiglipVisionConfig(**VISION)
    added = "layer_scale" if place == "layer" else "q_norm"
    with pytest.raises(UserError, match=f"transformers .*expected a SigLIP layer.*got .*{added}"):
        SiglipEncoder(config, grid=3)
    SiglipEncoder(config, grid=7)  # reads every token and computes whole layers


def test_frozen_until_thawed(folder):
    encoder = SiglipEncoder.from_pretrained(folder, grid=3)
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    encoder.requires_grad_(True)
    encoder(torch.randn(1, 3, 56, 56)).square().sum().backward()
    assert encoder.tower.embeddings.patch_embedding.weight.grad is not None
    assert encoder.tower.post_layernorm.weight.grad is None  # never run


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"resample": 99}, r"resample: expected one of 0 \(nearest\), 1 \(lanczos\), .*got 99"),
        ({"resample": "bicubic"}, "resample: expected one of .*got 'bicubic'"),
        ({"resample": True}, "resample: expected one of .*got True"),
        ({"do_normalize": False}, "expected do_normalize True, got False"),
        ({"rescale_factor": 1}, "expected rescale_factor 0.0039.*, got 1"),
        ({"image_mean": 0.5}, "image_mean: expected three numbers, got 0.5"),
        ({"image_std": [1, 2, None]}, "image_std: expected three numbers, got"),
        ({"size": {"shortest_edge": 56}}, "size is {'shortest_edge': 56}"),
    ],
    ids=str,
)
def test_preprocessing_of_another_kind_is_refused(folder, settings, problem):
    path = preprocessor_of(folder, **settings)
    with pytest.raises(UserError, match=f"{path.name}: {problem}"):
        SiglipEncoder.from_pretrained(folder, grid=3)


def test_what_does_not_fit_is_refused(folder):
    with pytest.raises(UserError, match="grid: expected 1 to 7.*got 8"):
        SiglipEncoder.from_pretrained(folder, grid=8)
    preprocessor_of(folder, size={"height": 64, "width": 64})
    with pytest.raises(UserError, match="preprocessor_config.json: size is .*takes 56"):
        SiglipEncoder.from_pretrained(folder, grid=3)
    preprocessor_of(folder).unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(UserError, match=r"fc1.weight' has shape \(32, 24\).*needs \(40, 24\)"):
        SiglipEncoder.from_pretrained(folder, grid=3)
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "clip"}))
    with pytest.raises(UserError, match="expected a SigLIP model, got 'clip'"):
        SiglipEncoder.from_pretrained(folder, grid=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "24"}, "hidden_size: expected a whole number, 1 to 100000, got '24'"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: expected a whole number, 1 to 1000"),
        ({"patch_size": 0}, "patch_size: expected a whole number, 1 to 10000, got 0"),
        ({"image_size": None}, "image_size: expected a whole number, 1 to 10000, got None"),
        ({"num_attention_heads": 5}, "num_attention_heads: 5 does not divide hidden_size, 24"),
        ({"patch_size": 57}, "patch_size: 57 pixels do not fit image_size, 56"),
        ({"num_channels": 1}, r"num_channels: expected 3 \(RGB\), got 1"),
        ({"hidden_act": "gleu"}, "hidden_act: 'gleu' is no activation"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps: expected a number, 0 to 1, got 'small'"),
        ({"layer_norm_eps": math.nan}, "layer_norm_eps: expected a number, 0 to 1, got nan"),
        ({"vision_config": 3}, "vision_config: expected an object, got 3"),
        ({"model_type": ["siglip"]}, r"expected a SigLIP model, got \['siglip'\]"),
    ],
)
def test_sizes_that_no_encoder_has_are_a_sentence_with_the_file(folder, change, message):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=f"{folder}/config.json: {message}"):
        SiglipEncoder.from_pretrained(folder, grid=3)
