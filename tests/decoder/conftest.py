import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

from metamorph.config import DataConfig, DecoderConfig, ModelConfig, RunConfig, TrainingConfig
from tests.tiny_run import GRID, write_vision


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A random diffusers base and SigLIP tower, as small as they get."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    write_vision(folder / "siglip")
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 8), layers_per_block=1, latent_channels=4,
        norm_num_groups=2, sample_size=64, mid_block_add_attention=False,
    )  # fmt: skip
    vae.save_pretrained(folder / "vae")
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(8, 8), norm_num_groups=4, cross_attention_dim=12,
        attention_head_dim=2, mid_block_type=None,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    unet.save_pretrained(folder / "unet")
    DDPMScheduler(beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
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
