"""The smallest real starting point of a run: Hugging Face folders and a config that uses them."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

from metamorph.config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from metamorph.data.toy.tokenizer import build_toy_tokenizer

GRID = 2
ALL_KINDS = {"question": 1.0, "draw": 1.0, "edit": 1.0, "text": 1.0}


def write_language(folder: Path, width: int = 32) -> Path:
    """A random Llama of 2 layers with the toy tokenizer."""
    torch.manual_seed(0)
    tokenizer = build_toy_tokenizer()
    config = LlamaConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=len(tokenizer), tie_word_embeddings=False,
        max_position_embeddings=8192,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_vision(folder: Path, width: int = 24, patch: int = 16) -> Path:
    """A random SigLIP vision tower of one layer for 64 px pictures."""
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=1, num_attention_heads=2,
        image_size=64, patch_size=patch,
    )  # fmt: skip
    SiglipVisionModel(config).save_pretrained(folder)
    return folder


def tiny_diffusion() -> tuple[AutoencoderKL, UNet2DConditionModel, DDPMScheduler]:
    """A random VAE for 64 px pictures, a UNet for its latents, and their noise schedule."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 8), layers_per_block=1, latent_channels=4,
        norm_num_groups=2, sample_size=64, mid_block_add_attention=False,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(8, 8), norm_num_groups=4, cross_attention_dim=12,
        attention_head_dim=2, mid_block_type=None,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    return vae, unet, DDPMScheduler(beta_schedule="scaled_linear")


def tiny_config(folder: Path, stage: str, steps: int = 6, **training) -> RunConfig:
    """A run of a few steps below `folder`, from `folder/llama` and `folder/siglip`."""
    model = ModelConfig(vision=str(folder / "siglip"), grid=GRID)
    data = DataConfig(source="toy_scenes", kinds=ALL_KINDS)
    if stage != "decoder":
        model.language, data.row_length = str(folder / "llama"), 256
    return RunConfig(
        stage=stage,
        output=str(folder / stage),
        model=model,
        data=data,
        training=TrainingConfig(
            steps=steps, learning_rate=1e-2, log_every=1, checkpoint_every=3, **training
        ),
        device="cpu",
    )
