"""The parts of a diffusers folder: checked by their configs, then loaded from safetensors alone."""

from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKL, DDPMScheduler, ModelMixin, SchedulerMixin, UNet2DConditionModel
from torch import nn

from metamorph.decoder.files import check_parts, check_scheduler, weights_variant
from metamorph.errors import UserError, in_words
from metamorph.folders import check_folder

Module = TypeVar("Module", bound=ModelMixin)
Scheduler = TypeVar("Scheduler", bound=SchedulerMixin)


def load_part(module_class: type[Module], folder: Path) -> Module:
    """A module in fp32. Raises `UserError` naming the folder if it is missing or broken.

    Weights are read from `diffusion_pytorch_model.safetensors`, or from a variant of it, such as
    fp16, where a folder has no other.
    """
    variant = weights_variant(check_folder(folder))
    try:
        # Without `low_cpu_mem_usage=False` diffusers asks for a package that nothing else needs.
        module, info = module_class.from_pretrained(
            folder, variant=variant, use_safetensors=True, low_cpu_mem_usage=False,
            local_files_only=True, torch_dtype=torch.float32, output_loading_info=True,
        )  # fmt: skip
    except Exception as error:  # diffusers raises nothing narrower for what does not fit
        raise _broken(folder, error) from error
    if info["missing_keys"]:  # diffusers would go on with random weights
        raise UserError(f"{folder}: its weights lack the tensor {info['missing_keys'][0]!r}")
    return module


def load_scheduler(scheduler_class: type[Scheduler], folder: Path) -> Scheduler:
    """The noise schedule of a UNet for this class, whichever class it was saved by.

    Raises `UserError` if there is none, or for a UNet that predicts something else than
    noise or velocity.
    """
    check_scheduler(folder)
    try:
        return scheduler_class.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # diffusers raises nothing narrower for what does not fit
        raise _broken(folder, error) from error


def _broken(folder: Path, error: Exception) -> UserError:
    return UserError(f"{folder}: cannot be loaded: {in_words(error)}")


def unet_blocks(unet: UNet2DConditionModel) -> list[nn.Module]:
    """The parts of a UNet that are compiled, and gathered where weights are sharded, each alone."""
    middle = [] if unet.mid_block is None else [unet.mid_block]
    return [*unet.down_blocks, *middle, *unet.up_blocks]


def load_base(folder: Path) -> tuple[AutoencoderKL, UNet2DConditionModel, DDPMScheduler]:
    """VAE, UNet and noise schedule of a pretrained latent-diffusion model. Raises `UserError`."""
    check_parts(folder)
    scheduler = load_scheduler(DDPMScheduler, folder / "scheduler")
    return (
        load_part(AutoencoderKL, folder / "vae"),
        load_part(UNet2DConditionModel, folder / "unet"),
        scheduler,
    )
