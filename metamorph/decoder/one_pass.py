"""The one-pass decoder: visual features in, pictures out, in diffusers' folder layout."""

from pathlib import Path

from torch import Tensor

from metamorph.decoder import standalone_one_pass
from metamorph.decoder.denoising import Pictures
from metamorph.decoder.one_pass_files import check_one_pass_decoder
from metamorph.decoder.parts import load_part
from metamorph.decoder.vit_decoder import ViTDecoder
from metamorph.errors import UserError


class OnePassDecoder(standalone_one_pass.OnePassDecoder):
    """The decoder of `metamorph.decoder.standalone_one_pass`, from folders that are checked first;
    what it cannot draw is a `UserError`."""

    @classmethod
    def from_folder(cls, folder: str | Path) -> "OnePassDecoder":
        """Load what `save_pretrained` wrote, from safetensors and of the expected class alone.

        Raises `UserError` naming the folder if it is missing, broken or another pipeline.
        """
        folder = Path(folder)
        settings = check_one_pass_decoder(folder)
        vit = load_part(ViTDecoder, folder / "vit")
        return cls(vit, tokens_per_image=settings.tokens_per_image, encoder=settings.encoder)

    def _draw(self, features: Tensor, output_type: str) -> Pictures:
        try:
            return super()._draw(features, output_type)
        except FloatingPointError as error:
            raise UserError(str(error)) from error
