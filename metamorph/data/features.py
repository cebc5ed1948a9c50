"""Visual features on disk, in place of images: reading what `metamorph encode` wrote.

Features are unit vectors, so int8 codes need no scale: made unit length again, they are what a
scale for each token would give.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from metamorph.data.shards import (
    DTYPES,
    ShardFolder,
    ShardIndex,
    check_decoding,
    other_fit,
    read_index,
)
from metamorph.errors import SampleError, UserError, within
from metamorph.model.encoder_identity import identity
from metamorph.model.vision import VisionEncoder
from metamorph.pixels import Fit

LARGEST_CODE = 127


@dataclass(frozen=True)
class FeatureIndex(ShardIndex):
    """`encoder`: see `identity`."""

    WHAT: ClassVar[str] = "features"
    COUNTS: ClassVar[tuple[str, ...]] = ("grid", "width")

    encoder: str
    grid: int
    width: int

    @property
    def shapes(self) -> dict[str, list[int]]:
        return {"features": [self.grid**2, self.width]}


def store(features: Tensor, dtype: str) -> Tensor:
    """Unit vectors [..., C] in their stored form, one of `DTYPES`."""
    if dtype != "int8":
        return features.to(DTYPES[dtype])
    largest = features.abs().amax(-1, keepdim=True).clamp(min=1e-12)
    return (features.float() / largest * LARGEST_CODE).round().to(torch.int8)


def restore(stored: Tensor) -> Tensor:
    """fp32 unit vectors [..., C] of what `store` made."""
    features = stored.float()
    return F.normalize(features, dim=-1) if stored.dtype == torch.int8 else features


def stored_features(features: Tensor, dtype: str) -> tuple[dict[str, Tensor], Tensor]:
    """[B, tokens, C] as the tensors of a shard, on the CPU, and the error of each token
    [B, tokens]."""
    stored = store(features.cpu(), dtype)
    cosine = F.cosine_similarity(restore(stored), features.float().cpu(), dim=-1)
    return {"features": stored}, (1 - cosine).clamp(min=0)


class FeatureFolder(ShardFolder):
    """Features by key, see `ShardFolder`."""

    def __init__(self, folder: Path, verify: bool = True):
        self.index = read_index(FeatureIndex, folder)
        super().__init__(folder, self.index, verify)

    def read(self, keys: list[bytes]) -> Tensor:
        """fp32 [len(keys), tokens, C]. Raises `SampleError` for a key that is not there."""
        tokens, width = self.index.grid**2, self.index.width
        found = [torch.zeros(0, tokens, width)]
        for key in keys:
            row = self.row(key)
            if row is None:
                message = f"no features of image {key.hex()[:16]} in {self.folder}"
                raise SampleError("feature missing", message)
            found.append(restore(row["features"]))
        return torch.cat(found)


def open_features(folder: str, vision: VisionEncoder, verify: bool = True) -> FeatureFolder:
    """The folder `data.features` of whole pictures, see `open_features_of`."""
    return open_features_of(folder, identity(vision), vision.grid, "squash", verify)


def open_features_of(
    folder: str, encoder: str, grid: int, fit: Fit, verify: bool = True
) -> FeatureFolder:
    """The folder `data.features`, see `FeatureFolder`. `encoder`: an `identity`.

    Raises `UserError` if another encoder made it, or if its pictures were read or made square in
    another way.
    """
    with within("data.features"):
        index = read_index(FeatureIndex, Path(folder))
        check_decoding(folder, index)
        if index.fit != fit:
            raise UserError(other_fit(folder, index, fit))
        features = FeatureFolder(Path(folder), verify)
        if index.encoder != encoder:
            raise UserError(
                f"{folder} was made by another encoder, or for another grid than {grid}; "
                f"encode the data anew"
            )
    return features
