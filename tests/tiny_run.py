"""The smallest real starting point of a run: Hugging Face folders and a config that uses them."""

from functools import cache
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from metamorph.config import DataConfig, DecoderConfig, ModelConfig, RunConfig, TrainingConfig
from metamorph.data.toy.tokenizer import build_toy_tokenizer
from metamorph.decoder.adapter import FeatureAdapter
from metamorph.decoder.one_pass import OnePassDecoder
from metamorph.decoder.pipeline import VisualDecoder
from metamorph.decoder.samplers import sampler
from metamorph.decoder.vit_decoder import vit_decoder
from metamorph.model import MetaMorph
from metamorph.model.efficientnet_lite import EfficientNetLite, LiteConfig, Stage

GRID = 2
ALL_KINDS = {"question": 1.0, "draw": 1.0, "edit": 1.0, "text": 1.0}


@cache
def toy_tokenizer() -> PreTrainedTokenizerFast:
    """To be saved, not to be changed: it takes longer than all else here."""
    return build_toy_tokenizer()


def write_language(folder: Path, width: int = 32, model_type: str = "llama", **more) -> Path:
    """A random language model of 2 layers with the toy tokenizer; `more` goes to its config."""
    torch.manual_seed(0)
    tokenizer = toy_tokenizer()
    sizes = dict(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=width // 4, vocab_size=len(tokenizer),
        tie_word_embeddings=False, max_position_embeddings=8192, sliding_window=None,
    )  # fmt: skip
    config = AutoConfig.for_model(model_type, **sizes | more)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def replace_language(folder: Path, model_type: str, **more) -> None:
    """Another random language model in place of the one that `folder` links to."""
    (folder / "llama").unlink()
    write_language(folder / "llama", model_type=model_type, **more)


def write_vision(folder: Path, width: int = 24, patch: int = 16) -> Path:
    """A random SigLIP vision tower of one layer for 64 px pictures."""
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=1, num_attention_heads=2,
        image_size=64, patch_size=patch,
    )  # fmt: skip
    SiglipVisionModel(config).save_pretrained(folder)
    return folder


def write_efficientnet(folder: Path) -> Path:
    """A random EfficientNet-Lite of width 24 for 64 px pictures, as `write_vision` has them."""
    torch.manual_seed(0)
    stages = (Stage(1, 8, 1, 1, 3), Stage(2, 12, 2, 2, 5), Stage(2, 16, 1, 2, 3))
    config = LiteConfig(64, stem_width=8, stages=stages, head_width=24, classes=5)
    EfficientNetLite(config, GRID).save_pretrained(folder)
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


def decoder_config(folder: Path, steps: int = 3, **training) -> RunConfig:
    """A run of the decoder stage below `folder`, from `folder/base`, which is written."""
    for part, name in zip(tiny_diffusion(), ("vae", "unet", "scheduler"), strict=True):
        part.save_pretrained(folder / "base" / name)
    config = tiny_config(folder, "decoder", steps, **training)
    config.data.kinds = {"draw": 1.0}
    config.decoder = DecoderConfig(
        base=str(folder / "base"), batch_size=4, condition_dropout=0.5, sampling_steps=2,
        adapter_hidden=16,
    )  # fmt: skip
    return config


def tiny_decoder(feature_width: int = 24) -> VisualDecoder:
    """Draws random pictures of features as `write_vision` has them, in two steps by default."""
    vae, unet, noise_scheduler = tiny_diffusion()
    adapter = FeatureAdapter(feature_width, 16, unet.config.cross_attention_dim)
    decoder = VisualDecoder(vae, unet, sampler("dpm++", noise_scheduler.config), adapter, 2.0, 2)
    decoder.set_progress_bar_config(disable=True)
    return decoder


def write_teacher(folder: Path) -> Path:
    """A random teacher in `folder/decoder`, which draws with a guidance of 2, and its encoder in
    `folder/siglip`. Returns `folder`."""
    write_vision(folder / "siglip")
    tiny_decoder().save_pretrained(folder / "decoder")
    return folder


def distill_config(folder: Path, output: Path) -> RunConfig:
    """A run of the stage distill in `output/student`, from what `write_teacher` wrote."""
    return RunConfig(
        stage="distill",
        output=str(output / "student"),
        model=ModelConfig(vision=str(folder / "siglip"), grid=GRID),
        data=DataConfig(source="toy_scenes", kinds={"draw": 1.0}),
        training=TrainingConfig(steps=3, learning_rate=1e-3, log_every=1, checkpoint_every=2),
        decoder=DecoderConfig(teacher=str(folder / "decoder"), teacher_steps=4, batch_size=4),
        device="cpu",
    )


def tiny_one_pass(feature_width: int = 24) -> OnePassDecoder:
    """Draws random pictures of features as `write_vision` has them, in one pass."""
    torch.manual_seed(0)
    vit = vit_decoder(feature_width, width=16, layers=2, heads=2, picture_size=64, patch_size=16)
    decoder = OnePassDecoder(vit, tokens_per_image=GRID**2)
    decoder.set_progress_bar_config(disable=True)
    return decoder


def let_speak(model: MetaMorph) -> None:
    """Its greedy answers differ from prompt to prompt, and many of them hold pictures."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():  # large: a token depends on all before it
        if not name.startswith("vision."):
            torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.5)
    with torch.no_grad():  # a picture now and then, and an end not too soon
        model.language.lm_head.weight[model.config.image_start_id] *= 2
        model.language.lm_head.weight[model.config.eos_ids] *= 0.5


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


def tiny_one_pass_config(folder: Path) -> RunConfig:
    """A run of a few steps of a one-pass decoder, from `folder/siglip`, which it writes."""
    write_vision(folder / "siglip")
    config = tiny_config(folder, "decoder")
    config.training.learning_rate = 1e-3
    config.data.kinds = {"draw": 1.0}
    config.decoder = DecoderConfig(
        kind="rae", batch_size=4, width=16, layers=2, heads=2, picture_size=64, patch_size=16
    )
    return config
