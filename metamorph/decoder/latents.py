"""What a diffusion base makes of pictures: the posterior of its VAE, and which VAE that is."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from metamorph.decoder.files import check_parts
from metamorph.decoder.parts import load_part
from metamorph.errors import UserError, within
from metamorph.folders import check_folder
from metamorph.model.weights import read_json
from metamorph.pixels import Fit, Square

# What of a VAE decides its latents: their decoding may be anybody's.
ENCODING = ("encoder.", "quant_conv.")
SETTINGS = (
    "act_fn", "block_out_channels", "down_block_types", "in_channels", "latent_channels",
    "layers_per_block", "mid_block_add_attention", "norm_num_groups", "use_quant_conv",
)  # fmt: skip


def vae_identity(vae: AutoencoderKL) -> str:
    """A hash of all that decides a VAE's latents: its encoding half, and the settings of that."""
    settings = {name: vae.config.get(name) for name in SETTINGS}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        if name.startswith(ENCODING):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().data)
    return digest.hexdigest()


def latent_square(vae: AutoencoderKL, latent_side: int, fit: Fit) -> Square:
    """How a VAE takes pictures for latents of `latent_side` a side."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return Square(latent_side * factor, Image.Resampling.LANCZOS, fit)


def posterior(vae: AutoencoderKL, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [B, channels, h, w], unscaled, of pictures, uint8
    [B, side, side, 3]."""
    scaled = (pixels / 255 * 2 - 1).permute(0, 3, 1, 2)  # channels last, as the VAE is
    distribution = vae.encode(scaled).latent_dist
    return distribution.mean, distribution.std


class VaeEncoder:
    """The VAE of a diffusers folder, as `metamorph encode` uses it: a `LatentEncoder`.

    Raises `UserError` for a folder that no decoder could be trained on.
    """

    def __init__(self, base: str, fit: Fit, device: torch.device):
        with within("--latents"):
            folder = check_folder(base)
            check_parts(folder)
            side = latent_side(folder)
            vae = load_part(AutoencoderKL, folder / "vae")
        self.identity = vae_identity(vae)
        self.square = latent_square(vae, side, fit)
        self.shape = vae.config.latent_channels, side
        self.device = device
        self.vae = vae.eval().to(device, memory_format=torch.channels_last)

    def posterior(self, pictures: list[Image.Image]) -> tuple[Tensor, Tensor]:
        """Of pictures that are squares already, see the function of that name."""
        pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
        return posterior(self.vae, pixels.to(self.device))


def latent_side(base: Path) -> int:
    """Of the latents that the UNet of a diffusers folder was made for. Raises `UserError`."""
    path = base / "unet" / "config.json"
    side = read_json(path).get("sample_size")
    if type(side) is not int:
        raise UserError(f"{path}: sample_size is {side!r}, expected a whole number")
    return side
