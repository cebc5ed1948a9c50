import pytest

from metamorph.config import DataConfig, DecoderConfig, ModelConfig, RunConfig, TrainingConfig
from tests.tiny_run import GRID, tiny_diffusion, write_vision


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A random diffusers base and SigLIP tower, as small as they get."""
    folder = tmp_path_factory.mktemp("base")
    write_vision(folder / "siglip")
    vae, unet, scheduler = tiny_diffusion()
    vae.save_pretrained(folder / "vae")
    unet.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture
def config(base, tmp_path) -> RunConfig:
    return RunConfig(
        stage="decoder",
        output=str(tmp_path / "decoder"),
        model=ModelConfig(vision=str(base / "siglip"), grid=GRID),
        data=DataConfig(source="toy_scenes", kinds={"draw": 1.0}),
        training=TrainingConfig(steps=6, learning_rate=1e-3, log_every=1, checkpoint_every=3),
        decoder=DecoderConfig(
            base=str(base), batch_size=4, condition_dropout=0.5, sampling_steps=3,
            adapter_hidden=16,
        ),
        device="cpu",
    )  # fmt: skip
