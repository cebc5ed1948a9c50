"""The diffusion decoder: visual features in, pictures out, in diffusers' folder layout."""

from pathlib import Path

import diffusers
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from metamorph.decoder import standalone
from metamorph.decoder.adapter import FeatureAdapter
from metamorph.decoder.denoising import Pictures
from metamorph.decoder.files import check_decoder
from metamorph.decoder.parts import load_part, load_scheduler
from metamorph.errors import UserError


class VisualDecoder(standalone.VisualDecoder):
    """The decoder of `metamorph.decoder.standalone`, from folders that are checked first; what it
    cannot draw is a `UserError`."""

    @classmethod
    def from_folder(cls, folder: str | Path) -> "VisualDecoder":
        """Load what `save_pretrained` wrote, from safetensors and of the expected classes alone.

        Raises `UserError` naming the folder if it is missing, broken or another pipeline.
        """
        folder = Path(folder)
        settings = check_decoder(folder)
        return cls(
            load_part(AutoencoderKL, folder / "vae"),
            load_part(UNet2DConditionModel, folder / "unet"),
            load_scheduler(getattr(diffusers, settings.scheduler), folder / "scheduler"),
            load_part(FeatureAdapter, folder / "adapter"),
            settings.guidance_scale,
            settings.sampling_steps,
            settings.tokens_per_image,
            settings.encoder,
        )

    def _decode(self, latents: Tensor, output_type: str) -> Pictures:
        try:
            return super()._decode(latents, output_type)
        except FloatingPointError as error:
            raise UserError(str(error)) from error
