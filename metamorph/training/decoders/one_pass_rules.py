"""Rules for the sizes of a one-pass decoder, asked before anything is loaded."""

from metamorph.config import DecoderConfig
from metamorph.errors import UserError


def check_one_pass(decoder: DecoderConfig) -> None:
    """Raises `UserError` that names the key of a size that no ViT has."""
    if decoder.width % 4:
        raise UserError(
            f"decoder.width: expected a multiple of 4, as positions have a sine and a cosine in "
            f"each of two directions, got {decoder.width}"
        )
    if decoder.width % decoder.heads:
        raise UserError(
            f"decoder.heads: {decoder.heads} do not divide decoder.width, {decoder.width}"
        )
    if decoder.picture_size % decoder.patch_size:
        raise UserError(
            f"decoder.patch_size: {decoder.patch_size} does not divide decoder.picture_size, "
            f"{decoder.picture_size}"
        )


def check_patches(decoder: DecoderConfig, grid: int) -> None:
    """Raises `UserError` if some of a picture's grid x grid tokens would be lost."""
    side = decoder.picture_size // decoder.patch_size
    if side < grid:
        raise UserError(
            f"decoder.patch_size: patches of {decoder.patch_size} make {side} x {side} of a "
            f"picture of {decoder.picture_size} pixels, fewer than its {grid} x {grid} tokens; "
            f"give smaller patches or a larger decoder.picture_size"
        )
