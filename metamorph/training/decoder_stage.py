"""Teaches a pretrained latent-diffusion UNet to follow visual features instead of text.

Adapter and UNet are trained together on the error of what the UNet predicts, with most conditions
dropped (paper appendix A.2); encoder and VAE stay frozen. No text is needed.
"""

import time
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from metamorph.config import DecoderConfig, RunConfig
from metamorph.costs.memory import decoder_bytes
from metamorph.costs.sharding import units
from metamorph.costs.step import describe_decoder_memory
from metamorph.data.opening import open_source, open_validation
from metamorph.data.pictures import PictureLanes, Pictures, PictureStream
from metamorph.data.sources import Source
from metamorph.decoder.adapter import FeatureAdapter
from metamorph.decoder.parts import load_base
from metamorph.decoder.pipeline import VisualDecoder
from metamorph.decoder.samplers import check_steps, sampler
from metamorph.errors import UserError, within
from metamorph.folders import check_folder
from metamorph.model.describe import describe_parameters, describe_precision
from metamorph.model.opening import open_encoder
from metamorph.model.precision import autocast
from metamorph.monitor.redrawn_sheet import RedrawnSheet
from metamorph.monitor.telemetry import PictureTelemetry
from metamorph.processes import add_up, gather, is_first, merged, rank, world_size
from metamorph.training.decoders.feature_noise import add_noise, draw_noise
from metamorph.training.decoders.latents import LatentTrainer
from metamorph.training.decoders.one_pass import OnePassTrainer
from metamorph.training.decoders.student import DistillTrainer
from metamorph.training.decoders.validation import PictureValidation
from metamorph.training.diffusion_objective import DiffusionObjective, training_schedule
from metamorph.training.draws import Draws
from metamorph.training.lora import plain
from metamorph.training.measuring import measuring
from metamorph.training.moving_average import MovingAverage
from metamorph.training.optimizer import make_optimizer
from metamorph.training.parallel import place_trainer, placed_anew, reduce_gradients
from metamorph.training.picture_batch import PictureBatch
from metamorph_kernels import send


class DecoderTrainer(LatentTrainer):
    """Trained UNet and adapter, and their loss."""

    def __init__(self, config: RunConfig):
        base = check_folder(config.decoder.base, "decoder.base")
        vision = open_encoder(config.model)
        with within("decoder.base"):
            vae, unet, schedule = load_base(base)
        super().__init__(config, vision, vae, unet)
        decoder = config.decoder
        self.noise_scheduler = training_schedule(
            schedule, decoder.prediction, decoder.zero_terminal_snr
        )
        draws = sampler(decoder.sampler, self.noise_scheduler.config)
        try:
            check_steps("decoder.sampling_steps", draws, decoder.sampling_steps)
        except ValueError as error:
            raise UserError(str(error)) from error
        self.objective = DiffusionObjective(
            self.noise_scheduler, decoder.min_snr_gamma, decoder.noise_offset
        )
        torch.manual_seed(config.seed)  # the adapter starts from scratch
        self.adapter = FeatureAdapter(
            self.feature_width,
            decoder.adapter_hidden,
            self.unet.config.cross_attention_dim,
            decoder.condition_length,
        )
        self.dropout, self.feature_noise = decoder.condition_dropout, decoder.feature_noise
        self.make_ready(config, vision, vae)

    def conditions(self, batch: PictureBatch, kept: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B, length, E], zero where dropped; only kept pictures are encoded. `noise`, for the
        features [B, tokens, C] of all, and `kept` are the host's."""
        indices = send(kept.nonzero().flatten(), batch.device)
        features = batch.visual_features(self.vision, indices)
        if noise is not None:
            features = add_noise(features, send(noise[kept], batch.device))
        adapted = self.adapter(features)
        empty = adapted.new_zeros(len(batch), *adapted.shape[1:])
        return empty.index_copy(0, indices, adapted)

    def forward(self, batch: PictureBatch, draw: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of `DiffusionObjective`, a mean over the batch; and the same as
        `denoising_loss`, what to log of it. In eval mode no condition is dropped,
        and none has noise."""
        kept = draw(torch.rand, (len(batch),)) >= (self.dropout if self.training else 0)
        noised = self.objective.noised(self.latents(batch, draw), draw)
        noise = None
        if self.feature_noise and self.training:
            shape = (len(batch), self.tokens_per_image, self.feature_width)
            noise = draw_noise(shape, self.feature_noise, draw)
        conditions = self.conditions(batch, kept, noise)
        predicted = self.unet(noised.latents, noised.timesteps, conditions).sample
        loss = self.objective.loss(predicted, noised)
        return loss, {"denoising_loss": loss.detach()}

    def decoder(self, config: DecoderConfig) -> VisualDecoder | None:
        """In the first process, with the weights as they are: what draws as `config` says by
        default. All processes call this."""
        unet, adapter = plain(self.unet), plain(self.adapter)
        if unet is None or adapter is None:
            return None
        with within("decoder.base"):
            vae = self.saved_vae(Path(config.base))
        return VisualDecoder(
            vae, unet, sampler(config.sampler, self.noise_scheduler.config), adapter,
            config.guidance_scale, config.sampling_steps, self.tokens_per_image, self.encoder,
        )  # fmt: skip


def open_trainer(config: RunConfig) -> DecoderTrainer | OnePassTrainer | DistillTrainer:
    """The trainer of the stage, and the kind of decoder, that `config` names, on the CPU.

    A trainer is called with a `PictureBatch` and the random numbers for it. It returns their mean
    loss, and what to log: means over them, too. Its `encoder_square` and `square` say how encoder
    and decoder take a picture, its `feature_cache` and `latent_cache` what of that is on disk, its
    `flops` what of a picture costs how much.
    """
    if config.stage == "distill":
        return DistillTrainer(config)
    return OnePassTrainer(config) if config.decoder.kind == "rae" else DecoderTrainer(config)


class DecoderStage:
    """Trainer, pictures and optimizer of the stages decoder and distill, each a
    `metamorph.training.stage.Stage`.

    All randomness of a step comes from (seed, step). Each process computes its share of the
    pictures, and holds a whole copy or a part of it.
    """

    def __init__(self, config: RunConfig, device: torch.device, source: Source | None = None):
        self.config = config
        self.device = device
        self.module = open_trainer(config)
        self.step_loss = place_trainer(self.module, self.module.blocks(), config, device)
        self.optimizer = make_optimizer(self.module, config)
        self.beside_adapter = [
            parameter
            for name, parameter in self.module.named_parameters()
            if parameter.requires_grad and not name.startswith("adapter.")
        ]
        self.average = MovingAverage(self.module, config.decoder.ema_decay)
        self.adapter_alone = False
        self.begin(1)
        self.average.follow()
        if source is None:
            source = open_source(config.data, config.seed, words=False, portion="training")
        pictures = Pictures(
            source,
            self.module.encoder_square,
            self.module.square,
            self.module.feature_cache,
            self.module.latent_cache,
        )
        self.lanes = PictureLanes(
            pictures, config.decoder.batch_size, rank(), world_size(), config.data.workers
        )
        self.validation, shown = None, pictures
        if config.data.validation:
            held_out = open_validation(config.data, config.seed, words=False)
            shown = replace(pictures, source=held_out)
            self.validation = PictureValidation(config, shown, device)
        self.telemetry = PictureTelemetry(self.module.flops, config.training.precision, device)
        self.sheet = None
        if config.monitor.samples_every and is_first():
            self.sheet = self._open_sheet(replace(shown, latents=None))

    @torch.no_grad()
    def _open_sheet(self, pictures: Pictures) -> RedrawnSheet:
        """Of the first pictures of the held-out data, or without them of all."""
        stream = PictureStream(pictures.sample, len(pictures))
        shown = [next(stream) for _ in range(self.config.monitor.samples)]
        batch = PictureBatch.of(shown).to(self.device)
        every = torch.arange(len(batch), device=self.device)
        features = batch.visual_features(self.module.vision, every)
        originals = [Image.fromarray(one.pixels) for one in shown if one.pixels is not None]
        return RedrawnSheet(originals, features)

    @property
    def kept(self) -> dict[str, Tensor]:
        return self.average.tensors()

    def begin(self, number: int) -> None:
        """The first `decoder.adapter_steps` steps train the adapter alone. Called by all."""
        alone = number <= self.config.decoder.adapter_steps
        if alone == self.adapter_alone:
            return
        self.adapter_alone = alone
        for parameter in self.beside_adapter:
            parameter.requires_grad_(not alone)
        self.step_loss = placed_anew(self.step_loss)
        self.average.follow()

    def stepped(self, number: int, bad: Tensor) -> None:
        self.average.update(number, bad)

    def forward_backward(self, step: int) -> dict[str, Tensor]:
        """Gradients of an optimizer step, and what to log of it, means over all processes."""
        started = time.perf_counter()
        pictures, lanes = self.lanes.next_pictures(), list(self.lanes.streams)
        self.telemetry.step_done(len(pictures), wait=time.perf_counter() - started)
        parts = self.config.decoder.accumulate
        found: list[dict[str, Tensor]] = []
        for part in range(parts):
            draw = Draws(self.config.seed, step, lanes[part::parts])
            batch = PictureBatch.of(pictures[part::parts]).to(self.device)
            reduce_gradients(self.step_loss, now=part == parts - 1)
            with autocast(self.config.training.precision, self.device):
                loss, losses = self.step_loss(batch, draw)
            (loss / parts).backward()
            found.append(losses)
        means = {name: torch.stack([losses[name] for losses in found]).mean() for name in found[0]}
        return {name: add_up(mean / world_size()) for name, mean in means.items()}

    def observe(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """What to log of the last step: its losses."""
        return losses

    def validate(self) -> dict[str, float]:
        """Means over the pictures of `data.validation`, as what is saved draws them; none without.
        All processes call this."""
        if self.validation is None:
            return {}
        with self.average.in_place(), self.telemetry.meter.paused():
            return self.validation.measure(self.module)

    def draw_samples(self) -> Image.Image | None:
        """A sheet of pictures redrawn from their own features, in the first process, as what is
        saved would draw them. All processes call this."""
        with self.average.in_place(), measuring(self.module):
            return self._sheet()

    def _sheet(self) -> Image.Image | None:
        decoder = self.module.decoder(self.config.decoder)
        if decoder is None or self.sheet is None:
            return None
        for part in decoder.components.values():
            if isinstance(part, nn.Module):
                part.eval()  # it may be a copy
        with self.telemetry.meter.paused(), autocast(self.config.training.precision, self.device):
            return self.sheet.draw(decoder)

    def last_samples(self) -> list[str]:
        return self.lanes.last_samples()

    def state_dict(self) -> dict:
        return {"lanes": merged(gather(self.lanes.state_dict()))}

    def load_state_dict(self, state: dict) -> None:
        self.lanes.load_state_dict(state["lanes"])

    def describe_plan(self) -> list[str]:
        """Parameters, arithmetic, and memory of a step but for activations."""
        return [
            describe_parameters(self.module, self.config.stage),
            describe_precision(self.config.training.precision),
            describe_decoder_memory(decoder_bytes(units(self.module), self.config)),
        ]

    def save(self, folder: Path) -> Path:
        """Writes `folder/decoder`, in diffusers' layout. All processes call this."""
        with self.average.in_place():
            decoder = self.module.decoder(self.config.decoder)
            if decoder is not None:
                decoder.save_pretrained(folder / "decoder")
        return folder / "decoder"

    def close(self) -> None:
        """Ends the processes that prepare pictures."""
        self.lanes.close()
