"""Teaches a copy of a trained decoder's UNet to draw in a few steps what that one draws in many,
guidance included.

The student draws; from wherever it stands, the teacher shows where its next step should arrive: by
many short steps, as in progressive distillation (arXiv 2202.00512), from the student's own latents,
not from pictures with noise (backward distillation, arXiv 2405.05224). So it learns to put right
what it did before, and neither pictures nor their latents are needed, only features. Encoder, VAE
and adapter stay as they are.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from metamorph.config import DecoderConfig, RunConfig
from metamorph.decoder.denoising import Guidance
from metamorph.decoder.files import check_decoder
from metamorph.decoder.parts import unet_blocks
from metamorph.decoder.pipeline import VisualDecoder
from metamorph.decoder.samplers import sampler
from metamorph.errors import UserError, within
from metamorph.folders import check_folder
from metamorph.model.encoder_identity import identity
from metamorph.model.opening import open_encoder
from metamorph.model.vision import VisionEncoder
from metamorph.training.decoders.latents import LatentTrainer
from metamorph.training.decoders.student_rules import with_guidance
from metamorph.training.decoders.trajectory import Predict, Trajectory
from metamorph.training.draws import Draws
from metamorph.training.lora import plain
from metamorph.training.picture_batch import PictureBatch
from metamorph_kernels import send


class DistillTrainer(LatentTrainer):
    """The student's UNet, and its frozen teacher, whose VAE and adapter it keeps.

    Raises `UserError` for a teacher that is none, or was trained on features of another encoder.
    """

    def __init__(self, config: RunConfig):
        folder = check_folder(config.decoder.teacher, "decoder.teacher")
        vision = open_encoder(config.model)
        with within("decoder.teacher"):
            check_encoder(folder, vision)
            decoder = VisualDecoder.from_folder(folder)
        config = with_guidance(config, decoder.config.guidance_scale)
        settings = config.decoder
        super().__init__(config, vision, decoder.vae, copy.deepcopy(decoder.unet))
        self.adapter, self.teacher = decoder.adapter, decoder.unet
        for frozen in (self.adapter, self.teacher):
            frozen.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.make_ready(config, vision, decoder.vae)
        if config.training.compile:
            for block in unet_blocks(self.teacher):
                block.compile(fullgraph=True)
        self.guidance_scale = settings.guidance_scale
        self.scheduler = few_step_scheduler(decoder.scheduler.config)
        side = self.unet.config.sample_size
        self.shape = (self.unet.config.in_channels, side, side)  # of latents
        timesteps = self.scheduler.config.num_train_timesteps
        if settings.teacher_steps > timesteps:
            raise UserError(
                f"decoder.teacher_steps: got {settings.teacher_steps}, expected at most the "
                f"{timesteps} timesteps of the teacher in {folder}"
            )
        self.trajectory = Trajectory(
            self.scheduler, settings.sampling_steps, settings.teacher_steps
        )
        if not self.trajectory.predicts_velocity and not all(self.trajectory.signal):
            raise UserError(
                f"decoder.teacher: {folder} predicts noise, also where its schedule leaves nothing "
                f"else and that says nothing of a picture; expected v_prediction"
            )

    def forward(self, batch: PictureBatch, draw: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, how far from where they should the student's steps arrive: mean squared error
        in latents; and the same as `distillation_loss`, what to log of it."""
        everyone = torch.arange(len(batch), device=batch.device)
        with torch.no_grad():
            conditions = self.adapter(batch.visual_features(self.vision, everyone))
        latents = send(draw(torch.randn, (len(batch), *self.shape)), batch.device)
        teacher = guided(self.teacher, conditions, self.guidance_scale)
        student = guided(self.unet, conditions, 1)
        errors = []
        for timesteps in self.trajectory.steps:
            with torch.no_grad():
                wanted = self.trajectory.follow(teacher, latents, timesteps)
            arrived = self.trajectory.follow(student, latents, (timesteps[0], timesteps[-1]))
            errors.append(F.mse_loss(arrived, wanted))
            latents = arrived.detach()
        loss = torch.stack(errors).mean()
        return loss, {"distillation_loss": loss.detach()}

    def decoder(self, config: DecoderConfig) -> VisualDecoder | None:
        """In the first process, with the weights as they are: what draws in the student's steps,
        without guidance. All processes call this."""
        unet = plain(self.unet)
        if unet is None:
            return None
        with within("decoder.teacher"):
            vae = self.saved_vae(Path(config.teacher))
        return VisualDecoder(
            vae, unet, self.scheduler, self.adapter, 1.0, config.sampling_steps,
            self.tokens_per_image, self.encoder,
        )  # fmt: skip


def few_step_scheduler(teacher: Mapping[str, Any]) -> DDIMScheduler:
    """How a student draws, of the config of its teacher's scheduler: from noise alone to clean
    latents, in steps of one length."""
    return sampler("ddim", {**teacher, "set_alpha_to_one": True})


def guided(unet: UNet2DConditionModel, conditions: Tensor, scale: float) -> Predict:
    """What a UNet predicts with classifier-free guidance against a condition of zeros, as it draws;
    `conditions` [B, length, E]."""
    if scale == 1:
        return lambda latents, timesteps: unet(latents, timesteps, conditions).sample
    both = torch.cat([torch.zeros_like(conditions), conditions])

    def predict(latents: Tensor, timesteps: Tensor) -> Tensor:
        predicted = unet(latents.repeat(2, 1, 1, 1), timesteps.repeat(2), both).sample.float()
        return Guidance(scale).apply(*predicted.chunk(2))

    return predict


def check_encoder(folder: Path, vision: VisionEncoder) -> None:
    """Raises `UserError` unless `folder` holds a decoder of this encoder's features."""
    settings = check_decoder(folder)
    settings.check_features(folder, vision.width, vision.tokens_per_image, "the encoder gives")
    if settings.encoder not in (None, identity(vision)):
        raise UserError(
            f"{folder}: it draws from features of another encoder than that of the run: other "
            f"weights, or another normalisation or size of pictures"
        )
