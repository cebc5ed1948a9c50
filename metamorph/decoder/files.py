"""The files of a decoder's folder, checked before diffusers is imported to open them."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from metamorph.decoder.samplers import SAMPLERS
from metamorph.errors import UserError, shown
from metamorph.folders import check_file, check_folder, check_result
from metamorph.model.unified import MetaMorphConfig
from metamorph.model.weights import read_json

PIPELINE = "VisualDecoder"
COMPONENTS = {  # the classes as model_index.json names them; no other is ever loaded
    "vae": [["diffusers", "AutoencoderKL"]],
    "unet": [["diffusers", "UNet2DConditionModel"]],
    "scheduler": [["diffusers", name] for name in SAMPLERS.values()],
    "adapter": [["metamorph.decoder.adapter", "FeatureAdapter"]],
}
# Of a sampler, where it has the key: see `metamorph.decoder.samplers`.
SAMPLES_SO = {"algorithm_type": "dpmsolver++", "predict_x0": True, "use_flow_sigmas": False}
MODULES = ("vae", "unet", "adapter")  # those that have weights
WEIGHTS = "diffusion_pytorch_model"
SHARDS = f"{WEIGHTS}.safetensors.index.json"
PLAIN = {f"{WEIGHTS}.safetensors", SHARDS}
VARIANT = re.compile(rf"{WEIGHTS}\.(?:safetensors\.index\.(\w+)\.json|(\w+)\.safetensors)")
# Keys of a UNet that listens to more than its cross-attention: classes, text and time (SDXL).
OTHER_CONDITIONS = (
    "class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type",
    "encoder_hid_dim",
)  # fmt: skip
# Keys of a VAE whose latents are more than scaled.
OTHER_LATENTS = ("shift_factor", "latents_mean", "latents_std")
PREDICTIONS = ("epsilon", "v_prediction")  # what a UNet may say of noised latents
DEFAULT_WIDTH = 1280  # of diffusers, where a config does not say
EXPECTED = "expected a base like Stable Diffusion 1.5"


@dataclass(frozen=True)
class DecoderSettings:
    """What a decoder's folder says of itself: see `VisualDecoder`. `kind`: as `decoder.kind` of a
    run names it; `feature_width`: C."""

    kind: str
    guidance_scale: float
    sampling_steps: int
    tokens_per_image: int | None
    encoder: str | None
    feature_width: int
    scheduler: str = ""  # the class of its sampler, where it has one

    def check_model(self, folder: Path, config: MetaMorphConfig) -> None:
        """Raises `UserError` if a model with `config` predicts other features than it draws."""
        tokens = config.tokens_per_image
        self.check_features(folder, config.visual_width, tokens, "the model predicts")

    def check_features(self, folder: Path, width: int, tokens: int, whose: str) -> None:
        """Raises `UserError` if it draws from features of another width or number a picture."""
        for what, given, expected in (
            ("of width {}", self.feature_width, width),
            ("in pictures of {} tokens", self.tokens_per_image, tokens),
        ):
            if given not in (None, expected):
                raise UserError(
                    f"{folder}: it draws from features {what.format(given)}, but {whose} them "
                    f"{what.format(expected)}"
                )


def check_decoder(folder: Path) -> DecoderSettings:
    """The settings of a decoder that `VisualDecoder.save_pretrained` wrote.

    Raises `UserError` for another pipeline, and for files that are missing, damaged or do not fit
    together, as far as that shows without opening its parts.
    """
    index = _read_index(check_folder(folder) / "model_index.json")
    width = check_parts(folder)
    check_scheduler(folder / "scheduler")
    path = folder / "scheduler/scheduler_config.json"
    sampling = read_json(path)
    for name, expected in SAMPLES_SO.items():
        if sampling.get(name) not in (None, expected):
            raise UserError(f"{path}: {name} is {shown(sampling[name])}, expected {expected!r}")
    path = check_folder(folder / "adapter") / "config.json"
    adapter = read_json(path)
    for name in ("feature_width", "condition_width"):
        value = adapter.get(name)
        if type(value) is not int:
            raise UserError(f"{path}: {name} is {shown(value)}, expected a whole number")
    if adapter["condition_width"] != width:
        raise UserError(
            f"{folder}: its adapter makes conditions of width {adapter['condition_width']}, but "
            f"cross_attention_dim of its UNet is {width}"
        )
    for name in MODULES:
        check_weights(folder / name)
    return DecoderSettings(
        "diffusion",
        index["guidance_scale"],
        index["sampling_steps"],
        index.get("tokens_per_image"),
        index.get("encoder"),
        adapter["feature_width"],
        index["scheduler"][1],
    )


def _read_index(path: Path) -> dict:
    """model_index.json. `UserError` unless it is that of a `VisualDecoder`."""
    check_result(path, "decoder")
    index = read_json(path)
    if index.get("_class_name") != PIPELINE:
        found = index.get("_class_name")
        raise UserError(f"{path}: expected the pipeline {PIPELINE}, got {found!r}")
    for name, expected in COMPONENTS.items():
        if index.get(name) not in expected:
            wanted = " or ".join(map(str, expected))
            raise UserError(f"{path}: {name} is {shown(index.get(name))}, expected {wanted}")
    for name, kinds, least in (("guidance_scale", (int, float), 0), ("sampling_steps", (int,), 1)):
        value: Any = index.get(name)
        if type(value) not in kinds or not least <= value < math.inf:
            raise UserError(f"{path}: {name} is {value!r}, expected a number of at least {least}")
    for name, kind in (("tokens_per_image", int), ("encoder", str)):
        if type(index.get(name)) not in (kind, type(None)):
            raise UserError(f"{path}: {name} is {shown(index[name])}, expected {kind.__name__}")
    return index


def check_parts(folder: Path) -> int:
    """The width of the conditions that the UNet of a diffusers folder takes.

    Raises `UserError` unless the UNet follows cross-attention alone, on latents of the VAE.
    """
    _check_no_transformer(folder)
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


def _check_no_transformer(folder: Path) -> None:
    """Raises `UserError` for a base like Stable Diffusion 3 or Sana."""
    path = folder / "transformer" / "config.json"
    if path.is_file() and not (folder / "unet").exists():
        found = shown(read_json(path).get("_class_name"))
        raise UserError(
            f"{folder}: it has the transformer {found} in place of a UNet: it is trained by flow "
            f"matching, and its text condition is more than tokens for cross-attention (pooled "
            f"vectors beside them, or a language model's states), for which the decoder has no "
            f"adapter, noise schedule or sampler; {EXPECTED}"
        )


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


def check_scheduler(folder: Path) -> None:
    """Raises `UserError` unless the folder has the noise schedule of a UNet that predicts noise or
    velocity."""
    path = check_folder(folder) / "scheduler_config.json"
    config = read_json(path)
    if config.get("beta_schedule") is None and config.get("trained_betas") is None:
        raise UserError(
            f"{path}: {shown(config.get('_class_name'))} names no beta_schedule; {EXPECTED}"
        )
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise UserError(
            f"{path}: prediction_type is {shown(prediction)}, expected "
            f"{' or '.join(map(repr, PREDICTIONS))}"
        )


def weights_variant(folder: Path) -> str | None:
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


def check_weights(folder: Path) -> None:
    """Raises `UserError` unless the weights of a module are there and whole, by their headers."""
    variant = weights_variant(check_folder(folder))
    name = WEIGHTS if variant is None else f"{WEIGHTS}.{variant}"
    index = folder / (SHARDS if variant is None else f"{WEIGHTS}.safetensors.index.{variant}.json")
    names = [f"{name}.safetensors"]
    if not (folder / names[0]).exists():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise UserError(f"{index}: expected the key 'weight_map' to map tensors to files")
        names = sorted({str(shard) for shard in shards.values()})
    for path in (folder / name for name in names):
        check_file(path, "weights of a decoder")
        try:
            with safe_open(path, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: damaged safetensors file: {error}") from error
