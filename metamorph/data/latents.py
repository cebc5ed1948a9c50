"""A VAE's latents on disk, in place of pictures: reading what `metamorph encode --latents` wrote.

Mean and standard deviation of the posterior, unscaled, so that every step draws a sample of its own
from them as it would from the VAE.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from PIL import Image
from torch import Tensor

from metamorph.data.shards import (
    DTYPES,
    INDEX,
    ShardFolder,
    ShardIndex,
    check_decoding,
    other_fit,
    read_index,
)
from metamorph.errors import SampleError, UserError, within
from metamorph.folders import check_folder
from metamorph.model.weights import read_json
from metamorph.pixels import Square

FOLDER = "latents"  # beside the features of the same pictures


class LatentEncoder(Protocol):
    """A VAE as `encode` uses it."""

    identity: str  # of its weights
    square: Square  # how it takes pictures
    shape: tuple[int, int]  # channels, and the side of the latents
    device: torch.device

    def posterior(self, pictures: list[Image.Image]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [B, channels, h, w] of pictures that are squares already."""


@dataclass(frozen=True)
class LatentIndex(ShardIndex):
    """`vae`: see `decoder.latents.vae_identity`; `side`: of the squares that it saw, in pixels;
    `channels` and `size`: latents are [channels, size, size]."""

    WHAT: ClassVar[str] = "latents"
    COUNTS: ClassVar[tuple[str, ...]] = ("side", "channels", "size")

    vae: str
    side: int
    channels: int
    size: int

    @property
    def shapes(self) -> dict[str, list[int]]:
        shape = [self.channels, self.size, self.size]
        return {"mean": shape, "std": shape}


def stored_latents(mean: Tensor, std: Tensor, dtype: str) -> tuple[dict[str, Tensor], Tensor]:
    """Those of a posterior [B, channels, h, w] as the tensors of a shard, on the CPU, and how far
    storing moved each picture's mean [B].

    Raises `UserError` for values that are not finite, or not in `dtype`.
    """
    mean, std = mean.float().cpu(), std.float().cpu()
    stored = {"mean": mean.to(DTYPES[dtype]), "std": std.to(DTYPES[dtype])}
    if not all(tensor.isfinite().all() for tensor in stored.values()):
        raise UserError(
            f"the VAE's latents are NaN or infinite as {dtype}: its weights are damaged, or it "
            f"needs --precision fp32 or --dtype fp32"
        )
    return stored, (stored["mean"].float() - mean).abs().mean((1, 2, 3))


class LatentFolder(ShardFolder):
    """Latents by key, see `ShardFolder`."""

    def __init__(self, folder: Path, verify: bool = True):
        self.index = read_index(LatentIndex, folder)
        super().__init__(folder, self.index, verify)

    def read(self, key: bytes) -> Tensor:
        """fp32 [2, channels, h, w], mean and standard deviation. Raises `SampleError` for a key
        that is not there."""
        row = self.row(key)
        if row is None:
            message = f"no latents of image {key.hex()[:16]} in {self.folder}"
            raise SampleError("latents missing", message)
        return torch.cat([row["mean"], row["std"]]).float()


def open_latents(folder: str, vae: str, square: Square, verify: bool = True) -> LatentFolder:
    """The folder `decoder.latents`, see `LatentFolder`.

    Args:
        folder: written by `metamorph encode --latents`.
        vae: identity of the run's VAE.
        square: how the run takes pictures.
        verify: compare the shards with their hashes first.

    Raises `UserError` if another VAE made it, or of pictures of another size, fit or way to read.
    """
    with within("decoder.latents"):
        path = check_folder(folder)
        if "encoder" in read_json(path / INDEX):
            raise UserError(
                f"{folder} holds features; their latents, if they were encoded, are in "
                f"{path / FOLDER}"
            )
        index = read_index(LatentIndex, path)
        check_decoding(folder, index)
        if index.side != square.side:
            raise UserError(
                f"{folder} holds latents of pictures of {index.side} pixels a side, and "
                f"decoder.base takes {square.side}; encode the data anew"
            )
        if index.fit != square.fit:
            raise UserError(other_fit(folder, index, square.fit))
        latents = LatentFolder(path, verify)
        if index.vae != vae:
            raise UserError(
                f"{folder} was made by another VAE than that of decoder.base; encode the data anew"
            )
    return latents
