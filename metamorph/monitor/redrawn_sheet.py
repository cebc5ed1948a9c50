"""Pictures that a decoder in training draws from their own features, beside the originals."""

from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from metamorph.decoder.denoising import noise_generator
from metamorph.decoder.pipeline import VisualDecoder
from metamorph.evaluation.contact_sheet import SheetDrawing, SheetEntry, contact_sheet


@dataclass(frozen=True)
class RedrawnSheet:
    """Redraws the same pictures again and again, from the same noise, as training goes on."""

    originals: list[Image.Image]
    features: Tensor  # [pictures, tokens, C]

    def draw(self, decoder: VisualDecoder) -> Image.Image:
        """A contact sheet of drawings with the decoder's own settings. The random state of training
        stays as it is."""
        decoder.set_progress_bar_config(disable=True)
        generators = [noise_generator(0, number) for number in range(len(self.originals))]
        drawn = decoder.draw(self.features, generator=generators)
        return contact_sheet([
            SheetEntry("", original, {"drawn": SheetDrawing(picture)})
            for original, picture in zip(self.originals, drawn, strict=True)
        ])  # fmt: skip
