"""The files of a one-pass decoder's folder, checked before diffusers is imported to open them."""

from pathlib import Path

from metamorph.decoder.files import DecoderSettings, check_weights
from metamorph.errors import UserError, shown
from metamorph.folders import check_folder, check_result
from metamorph.model.weights import read_json

PIPELINE = "OnePassDecoder"
COMPONENTS = {"vit": ["metamorph.decoder.vit_decoder", "ViTDecoder"]}  # as model_index.json has it
LARGEST = {  # sizes of a ViT; a damaged number would take hours or all memory
    "hidden_size": 100_000,
    "decoder_hidden_size": 100_000,
    "decoder_num_hidden_layers": 1000,
    "decoder_num_attention_heads": 10_000,
    "decoder_intermediate_size": 400_000,
    "num_patches": 1_000_000,
    "patch_size": 10_000,
    "image_size": 10_000,
}


def check_one_pass_decoder(folder: Path) -> DecoderSettings:
    """The settings of a decoder that `OnePassDecoder.save_pretrained` wrote.

    Raises `UserError` for files that are missing, damaged or do not fit together, as far as that
    shows without opening its parts.
    """
    path = check_folder(folder) / "model_index.json"
    check_result(path, "decoder")
    index = read_json(path)
    if index.get("_class_name") != PIPELINE:
        found = shown(index.get("_class_name"))
        raise UserError(f"{path}: expected the pipeline {PIPELINE}, got {found}")
    for name, expected in COMPONENTS.items():
        if index.get(name) != expected:
            raise UserError(f"{path}: {name} is {shown(index.get(name))}, expected {expected}")
    for name, kind in (("tokens_per_image", int), ("encoder", str)):
        if type(index.get(name)) not in (kind, type(None)):
            raise UserError(f"{path}: {name} is {shown(index[name])}, expected {kind.__name__}")
    path = check_folder(folder / "vit") / "config.json"
    vit = read_json(path)
    for name, most in LARGEST.items():
        size = vit.get(name)
        if type(size) is not int or not 1 <= size <= most:
            raise UserError(
                f"{path}: {name} is {shown(size)}, expected a whole number, 1 to {most}"
            )
    _check_sizes(path, vit)
    check_weights(folder / "vit")
    return DecoderSettings(
        kind="rae",
        guidance_scale=1.0,
        sampling_steps=1,
        tokens_per_image=index.get("tokens_per_image"),
        encoder=index.get("encoder"),
        feature_width=vit["hidden_size"],
    )


def _check_sizes(path: Path, vit: dict) -> None:
    width, heads = vit["decoder_hidden_size"], vit["decoder_num_attention_heads"]
    if width % heads or width % 4:
        raise UserError(
            f"{path}: decoder_hidden_size is {width}, expected a multiple of 4 and of its "
            f"{heads} heads"
        )
    side, patch = vit["image_size"], vit["patch_size"]
    if side % patch or (side // patch) ** 2 != vit["num_patches"]:
        raise UserError(
            f"{path}: {vit['num_patches']} patches of {patch} pixels do not make a picture of "
            f"{side} x {side}"
        )
