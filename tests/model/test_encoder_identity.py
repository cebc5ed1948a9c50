"""The identity of an encoder is the same whether it is opened or not."""

import json
import shutil

import pytest

from metamorph.errors import UserError
from metamorph.model.encoder_identity import identity, stored_identity
from metamorph.model.siglip import SiglipEncoder
from tests.tiny_run import GRID, write_vision


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An encoder's folder as a model folder has it; tests change copies."""
    siglip = write_vision(tmp_path_factory.mktemp("siglip"))
    folder = tmp_path_factory.mktemp("saved")
    SiglipEncoder.from_pretrained(siglip, GRID).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "encoder")


def change_json(path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_unopened_it_is_the_same(folder):
    assert stored_identity(folder, GRID) == identity(SiglipEncoder.from_pretrained(folder, GRID))
    assert stored_identity(folder, GRID - 1) != stored_identity(folder, GRID)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"hidden_act": "gelu"}),
        ("config.json", {"layer_norm_eps": 1e-5}),
        ("config.json", {"num_attention_heads": 4}),
        ("preprocessor_config.json", {"image_mean": [0.4, 0.5, 0.5]}),
        ("preprocessor_config.json", {"image_std": [0.4, 0.5, 0.5]}),
        ("preprocessor_config.json", {"resample": 0}),
    ],
)
def test_it_follows_every_setting_as_when_opened(folder, file, changes):
    before = stored_identity(folder, GRID)
    change_json(folder / file, **changes)
    changed = stored_identity(folder, GRID)
    assert changed == identity(SiglipEncoder.from_pretrained(folder, GRID)) != before


def test_what_transformers_has_to_say_is_not_guessed(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["layer_norm_eps"]
    (folder / "config.json").write_text(json.dumps(config))
    assert stored_identity(folder, GRID) is None


def test_damaged_files_are_named(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"model.safetensors: damaged"):
        stored_identity(folder, GRID)
