"""A folder is opened as the kind of encoder that it holds, by whatever asks for one."""

import json

import pytest
import torch

from metamorph.cli.command import main
from metamorph.errors import UserError
from metamorph.model import open_vision
from metamorph.model.efficientnet_lite import EfficientNetLite
from metamorph.model.encoder_files import check_encoder
from metamorph.model.encoders import outline_vision, vision_of_sizes
from metamorph.model.siglip import SiglipEncoder
from metamorph.model.weights import read_json
from tests.tiny_run import GRID, write_efficientnet, write_language, write_vision

SERVED = (
    "siglip, siglip_vision_model, siglip2, siglip2_vision_model, clip, clip_vision_model, dinov2, "
    "dinov2_with_registers, dinov3_vit or efficientnet_lite"
)
KINDS = {SiglipEncoder: write_vision, EfficientNetLite: write_efficientnet}


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_type_decides(kind, tmp_path):
    folder = KINDS[kind](tmp_path)
    encoder = open_vision(folder, GRID)
    assert type(encoder) is kind
    check_encoder(folder)
    with torch.device("meta"):
        outlines = (
            outline_vision(folder, GRID),
            vision_of_sizes(read_json(folder / "config.json"), GRID),
        )
    for outlined in outlines:
        assert type(outlined) is kind and outlined.width == encoder.width
        assert outlined.operations() == encoder.operations() > 0
    assert encoder.working_bytes(4) > encoder.working_bytes(2) > 0


@pytest.mark.parametrize("written", ["vit", ["siglip"], None])
@pytest.mark.parametrize("open_it", [lambda folder: open_vision(folder, GRID), check_encoder])
def test_other_models_are_refused_with_what_is_served(written, open_it, tmp_path):
    path = write_vision(tmp_path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": written}))
    with pytest.raises(UserError) as refused:
        open_it(tmp_path)
    assert f"{path}: expected an encoder, of model_type {SERVED}, got {written!r}" in str(
        refused.value
    )


def test_a_run_says_so_too(tmp_path, capsys):
    """A Llama's folder is no encoder."""
    language = write_language(tmp_path / "llama")
    run = {"stage": "align", "output": str(tmp_path / "out"), "data": {"source": "toy_scenes"}}
    run["model"] = {"language": str(language), "vision": str(language)}
    (tmp_path / "run.yaml").write_text(json.dumps(run))
    assert main(["train", str(tmp_path / "run.yaml"), "--device", "cpu"]) == 2
    assert "expected an encoder, of model_type siglip" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
