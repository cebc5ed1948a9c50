"""Teaches a pretrained latent-diffusion UNet to follow visual features instead of text.

Adapter and UNet are trained together on the noise-prediction error, with most conditions dropped
(paper appendix A.2); encoder and VAE stay frozen. No text is needed.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from metamorph.config import DecoderConfig, RunConfig
from metamorph.data.features import identity
from metamorph.data.opening import open_source
from metamorph.data.pictures import PictureLanes
from metamorph.data.sources import Source
from metamorph.decoder.adapter import FeatureAdapter
from metamorph.decoder.parts import load_base
from metamorph.decoder.pipeline import VisualDecoder, dpm_solver
from metamorph.errors import within
from metamorph.folders import check_folder
from metamorph.model.describe import describe_parameters, describe_precision
from metamorph.model.opening import open_encoder
from metamorph.model.precision import autocast
from metamorph.monitor.telemetry import PictureTelemetry
from metamorph.pixels import as_shown
from metamorph.processes import add_up, gather, is_first, merged, rank, world_size


class DecoderTrainer(nn.Module):
    """Frozen encoder and VAE, trained UNet and adapter, and their loss."""

    def __init__(self, config: RunConfig):
        super().__init__()
        base = check_folder(config.decoder.base, "decoder.base")
        self.vision = open_encoder(config.model)
        with within("decoder.base"):
            self.vae, self.unet, self.noise_scheduler = load_base(base)
        self.vae.requires_grad_(False).to(memory_format=torch.channels_last)
        self.unet.train().to(memory_format=torch.channels_last)  # convolutions run faster so
        torch.manual_seed(config.seed)  # the adapter starts from scratch
        self.adapter = FeatureAdapter(
            self.vision.width,
            config.decoder.adapter_hidden,
            self.unet.config.cross_attention_dim,
            config.decoder.condition_length,
        )
        self.dropout = config.decoder.condition_dropout

    @torch.no_grad()
    def latents(self, pictures: list[Image.Image], draw: Callable[..., Tensor]) -> Tensor:
        """Scaled samples [B, 4, h, w] of the VAE's posterior; `draw` gives normal numbers."""
        side = self.unet.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)
        shown = [as_shown(picture) for picture in pictures]
        pixels = VaeImageProcessor().preprocess(shown, height=side, width=side)
        posterior = self.vae.encode(pixels.to(self.vae.device)).latent_dist
        noise = draw(torch.randn, posterior.mean.shape).to(posterior.mean)
        return (posterior.mean + posterior.std * noise) * self.vae.config.scaling_factor

    def conditions(self, pictures: list[Image.Image], kept: Tensor) -> Tensor:
        """[B, length, E], zero where dropped; only kept pictures are encoded."""
        indices = kept.nonzero().flatten()
        pixels = self.vision.preprocess([pictures[i] for i in indices])
        adapted = self.adapter(self.vision(pixels.to(self.unet.device)))
        empty = adapted.new_zeros(len(pictures), *adapted.shape[1:])
        return empty.index_copy(0, indices.to(adapted.device), adapted)

    def forward(
        self,
        pictures: list[Image.Image],
        generator: torch.Generator,
        batch_size: int,
        own: slice = slice(None),
    ) -> Tensor:
        """Mean squared error of the predicted noise, at uniformly drawn timesteps.

        Random numbers are drawn for a whole batch, of which `pictures` are the `own` ones: who
        computes a picture does not change what is drawn for it.
        """

        def draw(distribution: Callable[..., Tensor], shape: Sequence[int]) -> Tensor:
            return distribution((batch_size, *shape[1:]), generator=generator)[own]

        count = (len(pictures),)
        kept = draw(torch.rand, count) >= self.dropout
        clean = self.latents(pictures, draw)
        noise = draw(torch.randn, clean.shape).to(clean)
        last = self.noise_scheduler.config.num_train_timesteps
        timesteps = draw(partial(torch.randint, last), count).to(clean.device)
        noisy = self.noise_scheduler.add_noise(clean, noise, timesteps)
        predicted = self.unet(noisy, timesteps, self.conditions(pictures, kept)).sample
        return F.mse_loss(predicted.float(), noise)


class DecoderStage:
    """Trainer, pictures and optimizer of the decoder stage, a `metamorph.training.loop.Stage`.

    All randomness of a step comes from (seed, step). Each process holds a whole copy and computes
    its share of the pictures.
    """

    def __init__(self, config: RunConfig, device: torch.device, source: Source | None = None):
        self.config = config
        self.module = self.step_loss = DecoderTrainer(config).to(device)
        if torch.distributed.is_initialized():
            self.step_loss = DistributedDataParallel(self.module, broadcast_buffers=False)
        training = config.training
        self.optimizer = torch.optim.AdamW(
            [*self.module.unet.parameters(), *self.module.adapter.parameters()],
            lr=training.learning_rate,
            betas=(training.beta1, training.beta2),
            weight_decay=training.weight_decay,
            fused=True,
        )
        if source is None:
            source = open_source(config.data, config.seed, words=False)
        self.lanes = PictureLanes(source, config.decoder.batch_size, rank(), world_size())
        self.telemetry = PictureTelemetry()

    def forward_backward(self, step: int) -> dict[str, Tensor]:
        """Gradients of an optimizer step, and its `noise_error`, the mean over all processes."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        pictures = self.lanes.next_pictures()
        batch_size = self.config.decoder.batch_size
        with autocast(self.config.training.precision, self.module.unet.device):
            loss = self.step_loss(pictures, generator, batch_size, self.lanes.own)
        loss.backward()
        return {"noise_error": add_up(loss.detach() / world_size())}

    def observe(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """What to log of the last step: its losses."""
        self.telemetry.meter.add(images=len(self.lanes.streams))
        return losses

    def validate(self) -> dict[str, float]:
        """Nothing: this stage does not use `data.validation`."""
        return {}

    def draw_samples(self) -> None:
        """Nothing: a decoder draws what a language model says. `rules` refuse to ask for it."""

    def last_samples(self) -> list[str]:
        return self.lanes.last_samples()

    def state_dict(self) -> dict:
        return {"lanes": merged(gather(self.lanes.state_dict()))}

    def load_state_dict(self, state: dict) -> None:
        self.lanes.load_state_dict(state["lanes"])

    def describe_plan(self) -> list[str]:
        """Parameters and arithmetic."""
        return [
            describe_parameters(self.module, self.config.stage),
            describe_precision(self.config.training.precision),
        ]

    def save(self, folder: Path) -> Path:
        """Writes `folder/decoder`, in diffusers' layout. All processes call this."""
        if is_first():
            save_pipeline(self.module, folder / "decoder", self.config.decoder)
        return folder / "decoder"

    def close(self) -> None:
        """Nothing: no process prepares pictures."""


def save_pipeline(trained: DecoderTrainer, folder: Path, config: DecoderConfig) -> None:
    """Writes a `VisualDecoder` that draws as `config` says by default."""
    # Contiguous, for safetensors stores no other layout.
    # pyrefly: ignore[no-matching-overload]  its stub lacks a memory format alone
    parts = trained.to(memory_format=torch.contiguous_format)
    pipeline = VisualDecoder(
        parts.vae, parts.unet, dpm_solver(parts.noise_scheduler), parts.adapter,
        config.guidance_scale, config.sampling_steps,
        parts.vision.tokens_per_image, identity(parts.vision),
    )  # fmt: skip
    pipeline.save_pretrained(folder)
