"""The pictures of a step on the device that trains on them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from metamorph.config import RunConfig
from metamorph.data.features import FeatureFolder, open_features_of
from metamorph.data.pictures import PreparedPicture
from metamorph.decoder.latents import posterior
from metamorph.model.vision import VisionEncoder
from metamorph_kernels import send


@dataclass(frozen=True)
class PictureBatch:
    """What a step reads of its pictures.

    What the encoder takes, `encoder_pixels` uint8 [B, S, S, 3], or its `features` fp32
    [B, tokens, C] where they are cached. What is to be drawn, `pixels` uint8 [B, side, side, 3], or
    its `latents` fp32 [B, 2, channels, h, w], mean and standard deviation, where those are cached.
    """

    encoder_pixels: Tensor | None = None
    pixels: Tensor | None = None
    features: Tensor | None = None
    latents: Tensor | None = None

    @classmethod
    def of(cls, pictures: Sequence[PreparedPicture]) -> "PictureBatch":
        """On the CPU. At least one."""
        found = {}
        for name in (entry.name for entry in fields(cls)):
            arrays = [getattr(picture, name) for picture in pictures]
            if arrays[0] is not None:
                found[name] = torch.from_numpy(np.stack(arrays))
        return cls(**found)

    def __len__(self) -> int:
        return len(next(iter(self._tensors().values())))

    @property
    def device(self) -> torch.device:
        return next(iter(self._tensors().values())).device

    def to(self, device: torch.device) -> "PictureBatch":
        """On a GPU the copies run while the host goes on."""
        return PictureBatch(**{n: send(tensor, device) for n, tensor in self._tensors().items()})

    def visual_features(
        self, vision: VisionEncoder | None, indices: Tensor | None = None
    ) -> Tensor:
        """[B, tokens, C], or those of some pictures alone: the cached ones, or what the frozen
        encoder says now. ValueError where there are neither features nor an encoder."""
        if self.features is not None:
            return self.features if indices is None else self.features.index_select(0, indices)
        if vision is None or self.encoder_pixels is None:
            raise ValueError("vision: features are not cached, so the batch needs the encoder")
        pixels = self.encoder_pixels
        if indices is not None:
            pixels = pixels.index_select(0, indices)
        return vision(vision.normalize(pixels))

    def posterior(self, vae: AutoencoderKL | None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [B, channels, h, w] of the latents: the cached ones, or what
        the VAE says now. ValueError where there are neither latents nor a VAE."""
        if self.latents is not None:
            mean, std = self.latents.unbind(1)
            return mean, std
        if vae is None or self.pixels is None:
            raise ValueError("vae: latents are not cached, so the batch needs the VAE")
        return posterior(vae, self.pixels)

    def _tensors(self) -> dict[str, Tensor]:
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: tensor for name, tensor in values.items() if tensor is not None}


def feature_cache(config: RunConfig, encoder: str, grid: int) -> FeatureFolder | None:
    """The folder `data.features`, if the run of a decoder names one. `encoder`: its `identity`.

    Raises `UserError` for features of another encoder, or of pictures that the run takes in another
    way.
    """
    data = config.data
    if not data.features:
        return None
    fit, verify = config.decoder.fit, data.verify_features
    return open_features_of(data.features, encoder, grid, fit, verify)
