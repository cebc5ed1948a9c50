"""The diffusion decoder as its folder brings it along: whoever has PyTorch and diffusers opens it.

`save_pretrained` writes this file beside the weights, for diffusers' `custom_pipeline=folder` and
`trust_remote_code=True`. So it imports nothing of `metamorph` but the files that go with it.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    ImagePipelineOutput,
    ModelMixin,
    SchedulerMixin,
    UNet2DConditionModel,
)
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from metamorph.decoder.denoising import Denoising, Guidance, Pictures
from metamorph.decoder.folder_code import write_files
from metamorph.decoder.samplers import check_steps, sampler

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
ADAPTER = ("metamorph.decoder.adapter", "FeatureAdapter")  # as model_index.json names it
Generators = torch.Generator | Sequence[torch.Generator] | None


class VisualDecoder(DiffusionPipeline):
    """Draws what visual features say, with classifier-free guidance against a zero condition.

    `guidance_scale` and `sampling_steps` are the defaults of a call; they are saved with it, as are
    the features that it was trained on: so many a picture, of the encoder with this `identity`.
    None where that is not known.
    """

    model_cpu_offload_seq = "adapter->unet->vae"

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        adapter: ModelMixin,
        guidance_scale: float = 3.0,
        sampling_steps: int = 20,
        tokens_per_image: int | None = None,
        encoder: str | None = None,
    ):
        super().__init__()
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler, adapter=adapter)
        self.register_to_config(
            guidance_scale=guidance_scale, sampling_steps=sampling_steps,
            tokens_per_image=tokens_per_image, encoder=encoder,
        )  # fmt: skip
        self.image_processor = VaeImageProcessor(
            vae_scale_factor=2 ** (len(vae.config.block_out_channels) - 1)
        )
        self._interrupt = False

    @property
    def feature_width(self) -> int:
        """C, the width of the features that it draws from."""
        return self.adapter.config.feature_width

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
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        generator: Generators = None,
        seeds: Sequence[int] | None = None,
        scheduler: str | None = None,
        callback_on_step_end: Callable[..., dict] | None = None,
        output_type: str = "pil",
        batch_size: int | None = None,
    ) -> Pictures:
        """Pictures of any number of features [B, tokens, C], as `steps` draws and refuses them.

        `batch_size` of them at a time (None: 8), which bounds the memory and changes no picture.
        `callback_on_step_end(decoder, step, timestep, {"latents": latents})` is called after every
        step of each such batch, and may return other latents by that name; where it sets
        `decoder._interrupt`, the batch is shown as it is and no other is begun.
        """
        count = len(features)
        size = 8 if batch_size is None else batch_size
        if size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {size}")
        generators = self._generators(count, generator, seeds)
        self._interrupt = False
        drawn = []
        for start in range(0, max(count, 1), size):
            part = slice(start, start + size)
            drawing = self.steps(
                features[part],
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                guidance_rescale=guidance_rescale,
                guidance_interval=guidance_interval,
                generator=generators[part],
                scheduler=scheduler,
                output_type=output_type,
            )
            if callback_on_step_end is not None:
                drawing.on_step_end = self._on_step_end(drawing, callback_on_step_end)
            *_, last = self.progress_bar(drawing)
            drawn.append(last.pictures)
            if self._interrupt:
                break
        self.maybe_free_model_hooks()
        if output_type == "pil":
            return [picture for pictures in drawn for picture in pictures]
        return np.concatenate(drawn) if output_type == "np" else torch.cat(drawn)

    def _on_step_end(self, drawing: Denoising, callback: Callable[..., dict]) -> Callable:
        def on_step_end(step: int, timestep: Tensor, latents: Tensor) -> Tensor:
            returned = callback(self, step, timestep, {"latents": latents}) or {}
            if self._interrupt:
                drawing.stop()
            return returned.get("latents", latents)

        return on_step_end

    @torch.no_grad()
    def steps(
        self,
        features: Tensor,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        generator: Generators = None,
        seeds: Sequence[int] | None = None,
        scheduler: str | None = None,
        preview_every: int = 0,
        output_type: str = "pil",
    ) -> Denoising:
        """Draws [B, tokens, C] features at once, a denoising step with each `next`; the last has
        the pictures.

        Arguments are named as in diffusers. Guidance is that of `Guidance`; the UNet predicts
        without the condition only where guidance needs it. A `generator` for all, one for each
        picture, or a seed for each makes the drawing repeatable; seeds and generators on the CPU
        give the same noise on any device, and a picture its own, whatever is drawn beside it.
        `scheduler` is a name of `SAMPLERS`, for one drawing. Every `preview_every` steps pictures
        are shown as they would look by then; 0 shows none. `output_type`: pictures as "pil", "np"
        [B, height, width, 3], "pt" [B, 3, height, width], or "latent" for clean latents.

        Raises `ValueError` for features of another shape, a number of generators or seeds that is
        not theirs, and arguments out of their limits; `next` raises `FloatingPointError` for
        pixels that are not finite.
        """
        width = self.feature_width
        if features.ndim != 3 or features.shape[-1] != width or not len(features):
            raise ValueError(
                f"features must be [B, tokens, {width}] of at least one picture, "
                f"got {tuple(features.shape)}"
            )
        count = self.config.sampling_steps if num_inference_steps is None else num_inference_steps
        if count < 1:
            raise ValueError(f"num_inference_steps: expected at least 1, got {count}")
        if preview_every < 0:
            raise ValueError(f"preview_every: expected at least 0, got {preview_every}")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type: expected one of {OUTPUT_TYPES}, got {output_type!r}")
        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        schedule = (
            self.scheduler if scheduler is None else sampler(scheduler, self.scheduler.config)
        )
        self._check_steps(schedule, count)
        device, dtype, side = self._execution_device, self.unet.dtype, self.unet.config.sample_size
        shape = (self.unet.config.in_channels, side, side)
        noise = [
            torch.randn(shape, generator=own, device=own.device).to(device)
            for own in self._generators(len(features), generator, seeds)
        ]
        return Denoising(
            self.unet,
            schedule,
            self._decode,
            self.adapter(features.to(device, dtype)),
            torch.stack(noise),
            guidance=Guidance(scale, guidance_rescale, guidance_interval),
            num_inference_steps=count,
            preview_every=preview_every,
            output_type=output_type,
        )

    def _generators(
        self, count: int, generator: Generators, seeds: Sequence[int] | None
    ) -> Sequence[torch.Generator]:
        """One for each picture."""
        if generator is not None and seeds is not None:
            raise ValueError("seeds: expected none beside a generator, which they would stand for")
        if seeds is not None:
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        elif generator is None or isinstance(generator, torch.Generator):
            return [generator or torch.default_generator] * count
        else:
            generators = generator
        if len(generators) != count:
            name = "generator" if seeds is None else "seeds"
            raise ValueError(
                f"{name}: expected one for each of {count} pictures, got {len(generators)}"
            )
        return generators

    def _check_steps(self, schedule: SchedulerMixin, count: int) -> None:
        check_steps("num_inference_steps", schedule, count)

    def _decode(self, latents: Tensor, output_type: str) -> Pictures:
        """Pictures of clean latents [B, channels, side, side]."""
        pixels = latents
        if output_type != "latent":
            scaled = latents / self.vae.config.scaling_factor
            pixels = self.vae.decode(scaled.to(self.vae.dtype)).sample.float()
        if not pixels.isfinite().all():
            raise FloatingPointError(
                "the decoder's pixels are NaN or infinite: its weights are damaged, its precision "
                "is too low for them, or its guidance scale too large"
            )
        return self.image_processor.postprocess(pixels, output_type=output_type)

    def compile(self, **options: Any) -> None:
        """Compiles the blocks of the UNet, and of the VAE where it decodes, in place, when they
        first run; their weights are laid out channels-last, as convolutions of a GPU read them.

        `options` are those of `torch.compile`. Each shape is compiled by itself: another number of
        pictures at once, or guidance that begins or ends, costs another time of compiling.
        `dynamic=True` compiles for all shapes at once.
        """
        unet, vae = self.unet, self.vae.decoder
        for part in (unet, vae):
            part.to(memory_format=torch.channels_last)
        blocks = (*unet.down_blocks, unet.mid_block, *unet.up_blocks, vae.mid_block, *vae.up_blocks)
        for block in blocks:
            if block is not None:
                block.compile(**{"dynamic": False, **options})

    def save_pretrained(self, save_directory: str | Path, *arguments: Any, **options: Any) -> None:
        """What diffusers saves, and the code that opens it without `metamorph`."""
        self.register_to_config(adapter=ADAPTER)
        write_code(Path(save_directory), type(self.adapter))
        with _contiguous(self.vae, self.unet, self.adapter):
            super().save_pretrained(save_directory, *arguments, **options)


@contextmanager
def _contiguous(*parts: torch.nn.Module) -> Generator[None]:
    """Their weights lie as safetensors stores them while the body runs; then as before, so that
    what was compiled for that layout is not compiled anew."""
    weights = [weight for part in parts for weight in part.parameters()]
    before = [(weight, weight.data) for weight in weights if not weight.is_contiguous()]
    try:
        for weight, data in before:
            weight.data = data.contiguous()
        yield
    finally:
        for weight, data in before:
            weight.data = data


def write_code(folder: Path, adapter: type) -> None:
    """Writes the code of a diffusion decoder into its folder; `adapter` is the class of that."""
    code = {"pipeline.py": VisualDecoder, "denoising.py": Denoising, "samplers.py": sampler}
    write_files(folder, code | {f"adapter/{ADAPTER[0]}.py": adapter})
