"""The command that rebuilds the shipped toy parts writes folders that the quickstart can use."""

import pytest
import torch

from metamorph.config import DecoderConfig, ModelConfig, RunConfig, TrainingConfig
from metamorph.data.toy.scenes import Scene, render
from metamorph.decoder.kinds import open_decoder
from metamorph.quickstart import make_assets
from metamorph.quickstart.one_pass_asset import build_one_pass_decoder
from metamorph.quickstart.run import ASSETS
from metamorph.training.decoder_stage import DecoderTrainer


@pytest.mark.slow
def test_rebuilt_parts_have_the_shapes_of_the_shipped_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(make_assets, "PICTURES", 64)
    make_assets.build_encoder(tmp_path / "encoder", steps=1)
    vae = make_assets.build_vae(tmp_path / "decoder_base", steps=1)
    make_assets.build_unet(tmp_path / "decoder_base", vae, steps=1)
    build_one_pass_decoder(tmp_path / "decoder_rae", tmp_path / "encoder", steps=1)

    def shapes(folder):
        config = RunConfig(
            stage="decoder",
            output=str(tmp_path / "run"),
            model=ModelConfig(vision=str(folder / "encoder"), grid=make_assets.GRID),
            training=TrainingConfig(),
            decoder=DecoderConfig(base=str(folder / "decoder_base")),
        )
        parts = DecoderTrainer(config)
        return {name: value.shape for name, value in parts.state_dict().items()}

    assert shapes(tmp_path) == shapes(ASSETS)

    def files(folder):  # weights of as many numbers of as many bytes
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return {
            path.relative_to(folder): path.suffix == ".json" or path.stat().st_size
            for path in paths
        }

    assert files(tmp_path / "decoder_rae") == files(ASSETS / "decoder_rae")
    assert open_decoder(tmp_path / "decoder_rae").feature_width == 96


def test_tokens_that_see_a_shape_are_found():
    picture = render(Scene("square", "red", "small", "top left"))
    seen = make_assets.sees_shape(make_assets.to_pixels([picture])).view(4, 4)
    assert torch.equal(seen.nonzero(), torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]))
