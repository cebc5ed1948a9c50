"""The diffusion decoder: visual features in, pictures out, in diffusers' folder layout."""

from pathlib import Path

import diffusers
from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from torch import Tensor

from metamorph.config.keys import DecoderAttention, DecoderGroupNorm
from metamorph.decoder import standalone
from metamorph.decoder.adapter import FeatureAdapter
from metamorph.decoder.attention import prepare_attention
from metamorph.decoder.denoising import Pictures
from metamorph.decoder.files import check_decoder
from metamorph.decoder.group_norm import prepare_group_norms
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

    def use_libraries(
        self,
        *,
        attention: DecoderAttention | None = None,
        group_norm: DecoderGroupNorm | None = None,
    ) -> None:
        """Lets libraries compute parts of the decoder, on the device and in the dtype that it is
        in: the attention of the UNet's transformer blocks, and the group norms of UNet and VAE.
        None leaves a part as it is. What is saved does not depend on it.

        Raises `ValueError` for a name that is none, and `UserError`, with the reason, for a library
        that is not there or cannot compute this decoder, which is then as it was.
        """
        prepared = []
        if attention is not None:
            prepared.append(prepare_attention(self.unet, attention))
        if group_norm is not None:
            prepared.append(prepare_group_norms((self.unet, self.vae.decoder), group_norm))
        for put_in_place in prepared:  # once none of them was refused
            put_in_place()

    def _check_steps(self, schedule: SchedulerMixin, count: int) -> None:
        try:
            super()._check_steps(schedule, count)
        except ValueError as error:
            raise UserError(str(error)) from error

    def _decode(self, latents: Tensor, output_type: str) -> Pictures:
        try:
            return super()._decode(latents, output_type)
        except FloatingPointError as error:
            raise UserError(str(error)) from error
