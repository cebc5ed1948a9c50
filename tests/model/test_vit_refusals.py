"""What makes no encoder is refused in one sentence, by each kind of vision transformer."""

import json
from functools import partial
from itertools import starmap
from types import SimpleNamespace

import pytest

from metamorph.errors import UserError
from metamorph.model import open_vision, vit
from metamorph.model.encoder_files import check_encoder
from tests.model.tiny_encoders import FAMILIES, served


def test_an_older_transformers_is_refused_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(vit, "transformers", SimpleNamespace(__version__="5.3.0"))
    open_vision(FAMILIES["CLIP"].write(tmp_path / "CLIP"), 2)
    for name, oldest in (("DINOv2", "5.18"), ("DINOv3", "5.4")):
        needed = f"config.json: a {name} encoder needs transformers {oldest} or newer, .* 5.3.0"
        with pytest.raises(UserError, match=needed):
            open_vision(FAMILIES[name].write(tmp_path / name), 2)


DOES_NOT_FIT = [
    ("CLIP", {"model_type": "vit"}, "expected an encoder, of model_type siglip, .* got 'vit'"),
    ("CLIP", {"hidden_size": 25}, "(The hidden size .25. is|3 does not divide hidden_size, 25)"),
    ("DINOv2", {"hidden_size": 25}, "num_attention_heads: 3 does not divide hidden_size, 25"),
    ("DINOv2", {"image_size": 48}, r"position_embeddings' has shape \(1, 50, 24\)"),
    ("SigLIP 2 NaFlex", {"num_patches": 50}, "num_patches: expected a square number, got 50"),
    ("DINOv2", {"mlp_ratio": 10**6}, "mlp_ratio: expected a whole number, 1 to 100"),
    ("DINOv2", {"image_size": [56, 56]}, r"image_size: expected a whole number, .*\[56, 56\]"),
    ("DINOv2", {"patch_size": 41}, "patch_size: 41 pixels do not fit image_size, 40"),
    ("DINOv2", {"use_swiglu_ffn": True}, "the tensor 'encoder.layer.0.mlp.gate_proj.weight'"),
    ("DINOv3", {"num_attention_heads": 4}, "heads of a multiple of 4 numbers, .* got 6"),
    ("DINOv3", {"num_register_tokens": -1}, "num_register_tokens: expected 0 to 10000, got -1"),
    ("DINOv3", {"num_register_tokens": 3}, r"register_tokens' has shape \(1, 4, 24\)"),
    ("DINOv3", {"rope_theta": "far"}, "not the sizes of a DINOv3 encoder: .*rope_theta"),
]


def changed(folder, file, change):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return path


@pytest.mark.parametrize(("name", "change", "message"), [*starmap(served, DOES_NOT_FIT)])
def test_what_does_not_fit_is_one_sentence(name, change, message, tmp_path):
    folder = FAMILIES[name].write(tmp_path)
    changed(folder, "config.json", change)
    with pytest.raises(UserError, match=f"{folder}.*{message}"):
        open_vision(folder, 2)


NO_SQUARE = [
    ("DINOv2", {"crop_size": {"height": 40, "width": 48}}, "crop_size is {'height': 40, 'wid"),
    ("DINOv2", {"do_center_crop": False}, "size is {'shortest_edge': 46}, expected one number"),
    ("DINOv3", {"size": 10**6}, "size is 1000000, expected one number of pixels"),
    ("SigLIP 2 NaFlex", {"max_num_patches": 0}, "max_num_patches: expected a whole number"),
    ("SigLIP 2 NaFlex", {"patch_size": "8"}, "patch_size: expected a whole number, .*'8'"),
]


@pytest.mark.parametrize(("name", "settings", "message"), [*starmap(served, NO_SQUARE)])
def test_a_square_that_cannot_be_is_refused(name, settings, message, tmp_path):
    folder = FAMILIES[name].write(tmp_path)
    path = changed(folder, "preprocessor_config.json", settings)
    for opened in (partial(open_vision, grid=2), check_encoder):
        with pytest.raises(UserError, match=f"{path}: {message}"):
            opened(folder)
