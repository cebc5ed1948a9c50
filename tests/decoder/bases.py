"""Random text-to-image folders of diffusers, shaped as published ones are, but a few channels wide:
what their configs say, which class saved their noise schedule, and the files beside them."""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)

STABLE_DIFFUSION_BETAS = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip


def write_stable_diffusion_1(folder: Path) -> Path:
    """Like Stable Diffusion 1.5: convolutional projections, 4 heads, PNDM, noise is predicted."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8, 16, 16), norm_num_groups=4,
        cross_attention_dim=12, attention_head_dim=4,
    )  # fmt: skip
    scheduler = PNDMScheduler(**_without("clip_sample"), skip_prk_steps=True)
    return _write(folder, "StableDiffusionPipeline", unet, scheduler)


def write_stable_diffusion_2_v(folder: Path) -> Path:
    """Like Stable Diffusion 2.1: linear projections, heads of one width, velocity is predicted."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=12, block_out_channels=(8, 16, 32, 32), norm_num_groups=4,
        cross_attention_dim=16, attention_head_dim=(1, 2, 4, 4), use_linear_projection=True,
        upcast_attention=True,
    )  # fmt: skip
    scheduler = DDIMScheduler(**STABLE_DIFFUSION_BETAS, prediction_type="v_prediction")
    return _write(folder, "StableDiffusionPipeline", unet, scheduler)


def write_stable_diffusion_3(folder: Path) -> Path:
    """Like Stable Diffusion 3 medium: a transformer and its flow-matching schedule."""
    transformer = SD3Transformer2DModel(
        sample_size=8, num_layers=1, attention_head_dim=4, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=8, pooled_projection_dim=16,
        pos_embed_max_size=8,
    )  # fmt: skip
    return _write_transformer(folder, "StableDiffusion3Pipeline", transformer)


def write_sana(folder: Path) -> Path:
    """Like Sana: a transformer with linear attention."""
    transformer = SanaTransformer2DModel(
        num_layers=1, num_attention_heads=2, attention_head_dim=4, num_cross_attention_heads=2,
        cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=16, sample_size=8,
    )  # fmt: skip
    return _write_transformer(folder, "SanaPipeline", transformer)


def _without(name: str) -> dict:
    return {key: value for key, value in STABLE_DIFFUSION_BETAS.items() if key != name}


def _write(folder: Path, pipeline: str, unet, scheduler) -> Path:
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 8, 8), norm_num_groups=2, sample_size=64,
    )  # fmt: skip
    for name, part in (("vae", vae), ("unet", unet), ("scheduler", scheduler)):
        part.save_pretrained(folder / name)
    _write_index(folder, pipeline)
    return folder


def _write_transformer(folder: Path, pipeline: str, transformer) -> Path:
    transformer.save_pretrained(folder / "transformer")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    _write_index(folder, pipeline)
    return folder


def _write_index(folder: Path, pipeline: str) -> None:
    """With the folders of a text encoder beside it, which is never opened."""
    (folder / "text_encoder").mkdir()
    (folder / "text_encoder" / "config.json").write_text("{}")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
