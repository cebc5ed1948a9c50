"""Pictures on their way from noise: one denoising step at a time, so that whoever draws can show
them, take some of them out, and do something else between two steps.

This file needs PyTorch and diffusers alone, for it goes with a decoder's folder.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import SchedulerMixin, UNet2DConditionModel

Pictures = Any  # what `output_type` says: a list of PIL images, an array, or a tensor


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: `scale` times as far from what the UNet predicts without the
    condition as it predicts with it. 1 leaves that prediction as it is.

    `rescale` gives it back so much of the standard deviation that guidance adds to (Lin et al.,
    arXiv 2305.08891, section 3.4); 0 none, 1 all. It acts in steps of the `interval`, shares of the
    way from noise (0) to picture (1), end exclusive (Kynkäänniemi et al., arXiv 2404.07724). Raises
    `ValueError` for what lies outside of these limits.
    """

    scale: float
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        start, stop = self.interval
        if not 0 <= start <= stop <= 1:
            raise ValueError(
                f"guidance_interval: expected two shares of the way, from 0 to 1, the smaller "
                f"first, got {self.interval}"
            )
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"guidance_rescale: expected 0 to 1, got {self.rescale}")

    def acts(self, step: int, steps: int) -> bool:
        """Whether step number `step`, from 0, has to know what the UNet says unconditioned."""
        start, stop = self.interval
        return self.scale != 1 and start <= step / steps < stop

    def apply(self, unconditional: Tensor, conditional: Tensor) -> Tensor:
        """One prediction [B, ...] of the two."""
        guided = unconditional + self.scale * (conditional - unconditional)
        if self.rescale == 0:
            return guided
        own = tuple(range(1, guided.ndim))
        ratio = conditional.std(own, keepdim=True) / guided.std(own, keepdim=True)
        return guided * (1 + self.rescale * (ratio - 1))


@dataclass(frozen=True)
class DrawingStep:
    """Step `step` of `steps`, from 1, of a batch of pictures is done.

    `previews`: what each would be if the noise that is left were what the UNet takes it for, with
    every so many steps. `pictures` come with the last step, which has no previews.
    """

    step: int
    steps: int
    previews: list[Image.Image] | None = field(default=None, repr=False)
    pictures: Pictures = field(default=None, repr=False)


class Denoising(Iterator[DrawingStep]):
    """Takes `noise` [B, channels, side, side] to pictures in `len(self)` steps.

    `conditions` [B, tokens, W] are what the UNet follows; without one, it sees zeros. `decode`
    makes pictures of clean latents, and of an output type as diffusers names them.

    `on_step_end`, if set, is given the number of each step, from 0, its timestep and the latents
    that it left, and returns those to go on with.
    """

    def __init__(
        self,
        unet: "UNet2DConditionModel",
        scheduler: "SchedulerMixin",
        decode: Callable[[Tensor, str], Pictures],
        conditions: Tensor,
        noise: Tensor,
        *,
        guidance: Guidance,
        num_inference_steps: int,
        preview_every: int = 0,
        output_type: str = "pil",
    ):
        self.unet, self.decode, self.conditions = unet, decode, conditions
        self.guidance, self.preview_every = guidance, preview_every
        self.output_type = output_type
        self.on_step_end: Callable[[int, Tensor, Tensor], Tensor] | None = None
        self.scheduler: Any = copy.copy(scheduler)  # it remembers the steps of one drawing
        self.scheduler.set_timesteps(num_inference_steps, device=noise.device)
        # In 32 bits whatever the UNet computes in: what is left of the noise is a sum of all steps.
        self.latents = noise.float() * self.scheduler.init_noise_sigma  # [B, channels, side, side]
        self.done = 0  # steps

    def __len__(self) -> int:
        return len(self.scheduler.timesteps)

    @torch.no_grad()
    def __next__(self) -> DrawingStep:
        """Does the next step. Raises what `decode` raises."""
        if self.done == len(self):
            raise StopIteration
        timestep = self.scheduler.timesteps[self.done]
        stepped = self.scheduler.step(self._predicted(timestep), timestep, self.latents)
        self.latents = stepped.prev_sample
        self.done += 1
        if self.on_step_end is not None:
            self.latents = self.on_step_end(self.done - 1, timestep, self.latents)
        if self.done == len(self):
            pictures = self.decode(self.latents, self.output_type)
            return DrawingStep(self.done, self.done, pictures=pictures)
        previews = None
        if self.preview_every and self.done % self.preview_every == 0:
            clean = getattr(stepped, "pred_original_sample", None)
            if clean is None:  # the multistep solvers keep the clean latents that they go by
                clean = self.scheduler.model_outputs[-1]
            previews = self.decode(clean, "pil")
        return DrawingStep(self.done, len(self), previews)

    def _predicted(self, timestep: Tensor) -> Tensor:
        """What the UNet predicts of the latents, guided; both branches are one batch."""
        sample, conditions = self.latents, self.conditions
        guided = self.guidance.acts(self.done, len(self))
        if guided:
            sample = torch.cat([sample, sample])
            conditions = torch.cat([torch.zeros_like(conditions), conditions])
        sample = self.scheduler.scale_model_input(sample, timestep).to(conditions.dtype)
        predicted = self.unet(sample, timestep, conditions).sample.float()
        return self.guidance.apply(*predicted.chunk(2)) if guided else predicted

    def stop(self) -> None:
        """Makes the last step that was done the last of all: from `on_step_end`, so that the
        pictures are shown as they are."""
        self.scheduler.timesteps = self.scheduler.timesteps[: self.done]

    def keep(self, rows: Sequence[int]) -> None:
        """Goes on with these pictures of the batch, in this order, and without the others."""
        kept, shape = list(rows), self.latents.shape

        def remembered(value: Any) -> Any:
            if isinstance(value, list):
                return [remembered(item) for item in value]
            return value[kept] if isinstance(value, Tensor) and value.shape == shape else value

        self.conditions, self.latents = self.conditions[kept], self.latents[kept]
        for name, value in vars(self.scheduler).items():  # latents of steps before, in some
            setattr(self.scheduler, name, remembered(value))


def noise_generator(seed: int, index: int) -> torch.Generator:
    """On the CPU, for the noise of picture number `index` of a request with this seed."""
    mixed = np.random.SeedSequence((seed, index)).generate_state(1, np.uint32)
    return torch.Generator().manual_seed(int(mixed[0]))
