"""The parts of a diffusers folder: checked by their configs, then loaded from safetensors alone."""

import re
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKL, DDPMScheduler, ModelMixin, SchedulerMixin, UNet2DConditionModel

from metamorph.errors import UserError, in_words, shown
from metamorph.folders import check_folder
from metamorph.model.weights import read_json

Module = TypeVar("Module", bound=ModelMixin)
Scheduler = TypeVar("Scheduler", bound=SchedulerMixin)
WEIGHTS = "diffusion_pytorch_model"
PLAIN = {f"{WEIGHTS}.safetensors", f"{WEIGHTS}.safetensors.index.json"}
VARIANT = re.compile(rf"{WEIGHTS}\.(?:safetensors\.index\.(\w+)\.json|(\w+)\.safetensors)")
# Keys of a UNet that listens to more than its cross-attention: classes, text and time (SDXL).
OTHER_CONDITIONS = (
    "class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type",
    "encoder_hid_dim",
)  # fmt: skip
# Keys of a VAE whose latents are more than scaled.
OTHER_LATENTS = ("shift_factor", "latents_mean", "latents_std")
DEFAULT_WIDTH = 1280  # of diffusers, where a config does not say
EXPECTED = "expected a base like Stable Diffusion 1.5"


def check_parts(folder: Path) -> int:
    """The width of the conditions that the UNet of a diffusers folder takes.

    Raises `UserError` unless the UNet follows cross-attention alone, on latents of the VAE.
    """
    unet = _read_config(folder, "unet", "UNet2DConditionModel")
    vae = _read_config(folder, "vae", "AutoencoderKL")
    _check_unet(folder / "unet" / "config.json", unet)
    path = folder / "vae" / "config.json"
    for key in OTHER_LATENTS:
        if vae.get(key):
            raise UserError(f"{path}: {key} is {shown(vae[key])}, {EXPECTED}, which has none")
    latents = vae.get("latent_channels", 4)
    for key in ("in_channels", "out_channels"):
        if unet.get(key, 4) != latents:
            raise UserError(
                f"{folder / 'unet' / 'config.json'}: {key} is {shown(unet.get(key, 4))}, expected "
                f"the {shown(latents)} channels of the latents of {path.parent}"
            )
        if vae.get(key, 3) != 3:
            raise UserError(f"{path}: {key} is {shown(vae[key])}, expected 3, as a picture has")
    return unet.get("cross_attention_dim", DEFAULT_WIDTH)


def _read_config(folder: Path, name: str, expected: str) -> dict:
    config = read_json(check_folder(folder / name) / "config.json")
    found = config.get("_class_name")
    if found != expected:
        raise UserError(
            f"{folder / name / 'config.json'}: _class_name is {shown(found)}, expected {expected}"
        )
    return config


def _check_unet(path: Path, unet: dict) -> None:
    for key in OTHER_CONDITIONS:
        if unet.get(key) is not None:
            raise UserError(
                f"{path}: {key} is {shown(unet[key])}, a condition that visual features cannot "
                f"give; {EXPECTED}, whose UNet is conditioned by cross-attention alone"
            )
    for key, default in (("cross_attention_dim", DEFAULT_WIDTH), ("sample_size", None)):
        value = unet.get(key, default)
        if type(value) is not int or value < 1:
            raise UserError(f"{path}: {key} is {shown(value)}, expected one whole number above 0")
    kinds = ("down_block_types", "mid_block_type", "up_block_types")
    # Where a config does not say, diffusers takes blocks with cross-attention; null is none.
    if not any("CrossAttn" in str(unet.get(kind, "CrossAttn")) for kind in kinds):
        raise UserError(
            f"{path}: no block has cross-attention, by which visual features could condition it"
        )


def load_part(module_class: type[Module], folder: Path) -> Module:
    """A module in fp32. Raises `UserError` naming the folder if it is missing or broken.

    Weights are read from `diffusion_pytorch_model.safetensors`, or from a variant of it, such as
    fp16, where a folder has no other.
    """
    variant = _variant(check_folder(folder))
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


def _variant(folder: Path) -> str | None:
    """The variant of the weights to read, `None` for the plain ones. `UserError` without any."""
    names = sorted(path.name for path in folder.iterdir())
    if PLAIN.intersection(names):
        return None
    variants = {m[1] or m[2] for m in map(VARIANT.fullmatch, names) if m is not None}
    if "fp16" in variants:
        return "fp16"
    if len(variants) == 1:
        return variants.pop()
    if variants:
        found = ", ".join(sorted(variants))
        raise UserError(f"{folder}: {WEIGHTS}.safetensors is missing, it has only {found}")
    pickled = [name for name in names if Path(name).suffix in (".bin", ".pt", ".pth", ".ckpt")]
    if pickled:
        raise UserError(
            f"{folder}: it has {pickled[0]}, a pickle, which is never opened; expected "
            f"{WEIGHTS}.safetensors"
        )
    raise UserError(f"{folder}: {WEIGHTS}.safetensors is missing")


def load_scheduler(scheduler_class: type[Scheduler], folder: Path) -> Scheduler:
    """The noise schedule of a UNet for this class, whichever class it was saved by.

    Raises `UserError` if there is none, or for a UNet that predicts something else than noise.
    """
    path = check_folder(folder) / "scheduler_config.json"
    config = read_json(path)
    if config.get("beta_schedule") is None and config.get("trained_betas") is None:
        raise UserError(
            f"{path}: {shown(config.get('_class_name'))} names no beta_schedule; {EXPECTED}"
        )
    prediction = config.get("prediction_type", "epsilon")
    if prediction != "epsilon":
        raise UserError(f"{path}: prediction_type is {shown(prediction)}, expected 'epsilon'")
    try:
        return scheduler_class.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # diffusers raises nothing narrower for what does not fit
        raise _broken(folder, error) from error


def _broken(folder: Path, error: Exception) -> UserError:
    return UserError(f"{folder}: cannot be loaded: {in_words(error)}")


def load_base(folder: Path) -> tuple[AutoencoderKL, UNet2DConditionModel, DDPMScheduler]:
    """VAE, UNet and noise schedule of a pretrained latent-diffusion model. Raises `UserError`."""
    check_parts(folder)
    scheduler = load_scheduler(DDPMScheduler, folder / "scheduler")
    return (
        load_part(AutoencoderKL, folder / "vae"),
        load_part(UNet2DConditionModel, folder / "unet"),
        scheduler,
    )
