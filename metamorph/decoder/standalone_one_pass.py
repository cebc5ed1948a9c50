"""The one-pass decoder as its folder brings it along: visual features in, pictures out, without
noise and without steps.

Like `metamorph.decoder.standalone` it imports nothing of `metamorph` but the files that go with it.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from metamorph.decoder.denoising import DrawingStep, Pictures
from metamorph.decoder.folder_code import write_files

OUTPUT_TYPES = ("pil", "np", "pt")
VIT = ("metamorph.decoder.vit_decoder", "ViTDecoder")  # as model_index.json names it
Generators = torch.Generator | Sequence[torch.Generator] | None


class OnePass(Iterator[DrawingStep]):
    """The one step of a drawing. `draw` makes pictures of features [B, tokens, C]."""

    def __init__(self, draw: Callable[[Tensor], Pictures], features: Tensor):
        self.draw, self.features, self.done = draw, features, False

    def __len__(self) -> int:
        return 1

    @torch.no_grad()
    def __next__(self) -> DrawingStep:
        if self.done:
            raise StopIteration
        self.done = True
        return DrawingStep(1, 1, pictures=self.draw(self.features))

    def keep(self, rows: Sequence[int]) -> None:
        """Goes on with these pictures of the batch, in this order, and without the others."""
        self.features = self.features[list(rows)]


class OnePassDecoder(DiffusionPipeline):
    """Draws what visual features say by one pass of a ViT; the same picture every time.

    It is saved with the features that it was trained on: so many a picture, of the encoder with
    this `identity`; None where that is not known. Its `guidance_scale` and `sampling_steps` are
    there for those who ask any decoder: it has one step, and no guidance.
    """

    def __init__(
        self,
        vit: ModelMixin,
        guidance_scale: float = 1.0,
        sampling_steps: int = 1,
        tokens_per_image: int | None = None,
        encoder: str | None = None,
    ):
        super().__init__()
        if (guidance_scale, sampling_steps) != (1, 1):
            raise ValueError(
                f"guidance_scale, sampling_steps: expected 1 and 1, for this decoder draws in one "
                f"pass, got {guidance_scale} and {sampling_steps}"
            )
        self.register_modules(vit=vit)
        self.register_to_config(
            guidance_scale=1.0, sampling_steps=1, tokens_per_image=tokens_per_image, encoder=encoder
        )
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)

    @property
    def feature_width(self) -> int:
        """C, the width of the features that it draws from."""
        return self.vit.config.hidden_size

    def __call__(
        self, features: Tensor, *, return_dict: bool = True, **options: Any
    ) -> ImagePipelineOutput | tuple:
        """What `draw` gives for the same arguments, as diffusers' pipelines return pictures."""
        images = self.draw(features, **options)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def draw(
        self,
        features: Tensor,
        *,
        generator: Generators = None,
        seeds: Sequence[int] | None = None,
        output_type: str = "pil",
        batch_size: int | None = None,
        **diffusion: Any,
    ) -> Pictures:
        """Pictures of any number of features [B, tokens, C], as `steps` draws and refuses them.

        `batch_size` of them at a time (None: 32), which bounds the memory and changes no picture.
        """
        count, size = len(features), 32 if batch_size is None else batch_size
        if size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {size}")
        _check_random(count, generator, seeds)
        starts = range(0, max(count, 1), size)
        parts = (features[start : start + size] for start in starts)
        drawings = [self.steps(part, output_type=output_type, **diffusion) for part in parts]
        pictures: list[Any] = [next(drawing).pictures for drawing in drawings]
        self.maybe_free_model_hooks()
        if output_type == "pil":
            return [picture for batch in pictures for picture in batch]
        return np.concatenate(pictures) if output_type == "np" else torch.cat(pictures)

    def steps(
        self,
        features: Tensor,
        *,
        generator: Generators = None,
        seeds: Sequence[int] | None = None,
        output_type: str = "pil",
        preview_every: int = 0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        **diffusion: Any,
    ) -> OnePass:
        """Draws [B, tokens, C] features by one `next`.

        It takes what a diffusion decoder takes, so that one can stand for the other. Random numbers
        it needs none: with any seed or generator a picture is the same, whatever is drawn beside
        it. `preview_every` shows nothing, for no step comes before the last. `output_type`:
        pictures as "pil", "np" [B, height, width, 3] or "pt" [B, 3, height, width].

        Raises `ValueError` for features of another shape, another number of seeds or generators,
        more than one step, guidance (a scale other than 1), and whatever else only diffusion has;
        `next` raises `FloatingPointError` for pixels that are not finite.
        """
        width = self.feature_width
        if features.ndim != 3 or features.shape[-1] != width or not len(features):
            raise ValueError(
                f"features must be [B, tokens, {width}] of at least one picture, "
                f"got {tuple(features.shape)}"
            )
        tokens = features.shape[1]
        if round(tokens**0.5) ** 2 != tokens:
            raise ValueError(f"features: expected a square number of tokens, got {tokens}")
        _check_random(len(features), generator, seeds)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type: expected one of {OUTPUT_TYPES}, got {output_type!r}")
        if preview_every < 0:
            raise ValueError(f"preview_every: expected at least 0, got {preview_every}")
        asked = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
        for name, value in asked.items():
            if value not in (None, 1):
                raise ValueError(
                    f"{name}: expected 1, for this decoder draws in one pass, got {value}"
                )
        for name, value in diffusion.items():
            if value not in (None, *_WITHOUT_MEANING.get(name, ())):
                raise ValueError(
                    f"{name}: this decoder draws in one pass and has none, got {value}"
                )
        return OnePass(lambda rows: self._draw(rows, output_type), features)

    def _draw(self, features: Tensor, output_type: str) -> Pictures:
        pixels = self.vit(features.to(self._execution_device, self.vit.dtype)).float()
        if not pixels.isfinite().all():
            raise FloatingPointError(
                "the decoder's pixels are NaN or infinite: its weights are damaged, its precision "
                "is too low for them, or the features are no numbers"
            )
        return self.image_processor.postprocess(pixels, output_type=output_type)

    def save_pretrained(self, save_directory: str | Path, *arguments: Any, **options: Any) -> None:
        """What diffusers saves, and the code that opens it without `metamorph`."""
        self.register_to_config(vit=VIT)
        write_code(Path(save_directory), type(self.vit))
        super().save_pretrained(save_directory, *arguments, **options)


def write_code(folder: Path, vit: type) -> None:
    """Writes the code of a one-pass decoder into its folder; `vit` is the class of its ViT."""
    code = {"pipeline.py": OnePassDecoder, "denoising.py": DrawingStep}
    write_files(folder, code | {f"vit/{VIT[0]}.py": vit})


# Defaults of a diffusion decoder that ask for nothing.
_WITHOUT_MEANING: dict[str, tuple] = {"guidance_rescale": (0,), "guidance_interval": ((0, 1),)}


def _check_random(count: int, generator: Generators, seeds: Sequence[int] | None) -> None:
    """Raises `ValueError` for seeds or generators of another number of pictures."""
    for name, given in (("generator", generator), ("seeds", seeds)):
        if isinstance(given, Sequence) and len(given) != count:
            raise ValueError(f"{name}: expected one for each of {count} pictures, got {len(given)}")
