"""Teaches a pretrained latent-diffusion UNet to follow visual features instead of text.

Adapter and UNet are trained together on the noise-prediction error, with most conditions dropped
(paper appendix A.2); encoder and VAE stay frozen. No text is needed.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor, nn

from metamorph.config import ModelConfig, RunConfig
from metamorph.data.pictures import PictureStream
from metamorph.data.skips import Skips
from metamorph.data.sources import open_source
from metamorph.decoder.adapter import FeatureAdapter
from metamorph.decoder.pipeline import VisualDecoder, dpm_solver
from metamorph.errors import UserError
from metamorph.model.precision import autocast
from metamorph.model.unified import MetaMorphConfig
from metamorph.model.vision import VisionEncoder
from metamorph.model.weights import read_json
from metamorph.training.loop import run_steps
from metamorph.training.processes import world_size
from metamorph.training.run_folder import find_checkpoint, resolve_device
from metamorph.training.telemetry import Meter


def open_encoder(start: ModelConfig) -> VisionEncoder:
    """The frozen encoder: ``model.vision``, or that of ``model.folder`` with the folder's grid."""
    if start.folder:
        folder = Path(start.folder)
        grid = MetaMorphConfig.from_dict(read_json(folder / "config.json")).grid
        return VisionEncoder.from_pretrained(folder / "encoder", grid)
    if start.vision:
        return VisionEncoder.from_pretrained(start.vision, start.grid)
    raise UserError("model: give model.vision (a SigLIP folder) or model.folder")


class DecoderTrainer(nn.Module):
    """Frozen encoder and VAE, trained UNet and adapter, and their loss."""

    def __init__(self, config: RunConfig):
        super().__init__()
        base = Path(config.decoder.base)
        for part in ("unet", "vae", "scheduler"):
            if not (base / part).is_dir():
                raise UserError(f"decoder.base: {base} has no {part}/, expected a diffusers folder")
        self.vision = open_encoder(config.model)
        options = {
            "torch_dtype": torch.float32,
            "use_safetensors": True,
            "low_cpu_mem_usage": False,  # else diffusers asks for a package nothing else needs
        }
        try:
            self.vae = AutoencoderKL.from_pretrained(base, subfolder="vae", **options)
            self.unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet", **options)
            self.noise_scheduler = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
        except (OSError, ValueError) as error:
            raise UserError(f"decoder.base: {base} cannot be read: {error}") from error
        prediction = self.noise_scheduler.config.prediction_type
        if prediction != "epsilon":
            raise UserError(f"decoder.base: {base} predicts {prediction!r}, expected 'epsilon'")
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
    def latents(self, pictures: list[Image.Image], generator: torch.Generator) -> Tensor:
        """Scaled samples [B, 4, h, w] of the VAE's posterior."""
        side = self.unet.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)
        pixels = VaeImageProcessor().preprocess(pictures, height=side, width=side)
        posterior = self.vae.encode(pixels.to(self.vae.device)).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
        return (posterior.mean + posterior.std * noise) * self.vae.config.scaling_factor

    def conditions(self, pictures: list[Image.Image], kept: Tensor) -> Tensor:
        """[B, length, E], zero where dropped; only kept pictures are encoded."""
        indices = kept.nonzero().flatten()
        pixels = self.vision.preprocess([pictures[i] for i in indices])
        adapted = self.adapter(self.vision(pixels.to(self.unet.device)))
        empty = adapted.new_zeros(len(pictures), *adapted.shape[1:])
        return empty.index_copy(0, indices.to(adapted.device), adapted)

    def forward(self, pictures: list[Image.Image], generator: torch.Generator) -> Tensor:
        """Mean squared error of the predicted noise, at uniformly drawn timesteps."""
        kept = torch.rand(len(pictures), generator=generator) >= self.dropout
        clean = self.latents(pictures, generator)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        last = self.noise_scheduler.config.num_train_timesteps
        timesteps = torch.randint(last, (len(pictures),), generator=generator).to(clean.device)
        noisy = self.noise_scheduler.add_noise(clean, noise, timesteps)
        predicted = self.unet(noisy, timesteps, self.conditions(pictures, kept)).sample
        return F.mse_loss(predicted.float(), noise)


class DecoderStage:
    """Trainer, pictures and optimizer of the decoder stage, for ``run_steps``.

    All randomness of a step comes from (seed, step).
    """

    def __init__(self, config: RunConfig):
        if config.training.precision == "fp8":
            raise UserError(
                "training.precision: the decoder stage trains no language model, whose layers are "
                "what fp8 means; it takes fp32 or bf16"
            )
        if config.training.optimizer != "torch":
            raise UserError(
                f"training.optimizer: the decoder stage takes torch only, "
                f"got {config.training.optimizer}"
            )
        if config.monitor.samples_every:
            raise UserError(
                "monitor.samples_every: the decoder stage draws no samples; the language model's do"
            )
        if world_size() > 1:
            raise UserError(
                f"stage: the decoder trains in one process, but torchrun started {world_size()}"
            )
        self.config = config
        self.module = DecoderTrainer(config).to(resolve_device(config.device))
        training = config.training
        self.optimizer = torch.optim.AdamW(
            [*self.module.unet.parameters(), *self.module.adapter.parameters()],
            lr=training.learning_rate,
            betas=(training.beta1, training.beta2),
            weight_decay=training.weight_decay,
            fused=True,
        )
        source = open_source(config.data, config.seed)
        self.stream = PictureStream(source)
        self.meter = Meter()

    def accumulate_gradients(self, step: int) -> dict[str, Tensor | float]:
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        pictures = self.stream.take(self.config.decoder.batch_size)
        with autocast(self.config.training.precision, self.module.unet.device):
            loss = self.module(pictures, generator)
        loss.backward()
        self.meter.add(images=len(pictures))
        return {"noise_error": loss.detach()}

    def read_meters(self) -> dict[str, float]:
        return {"images_per_second": self.meter.read()["images"]}

    def describe(self, values: dict) -> str:
        return f"noise error {values['noise_error']:.3f}, {values['images_per_second']:.0f} img/s"

    def last_samples(self) -> list[str]:
        return self.stream.last_samples

    def skipped(self) -> Skips:
        return self.stream.skips

    def state_dict(self) -> dict:
        return {"stream": self.stream.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.stream.load_state_dict(state["stream"])


def train_decoder(config: RunConfig) -> Path:
    """Runs the decoder stage, in one process, and returns ``output/decoder``, in diffusers' layout.

    Raises ``UserError`` for what a user can mend, ``Stopped`` if interrupted.
    """
    find_checkpoint(config)  # an unusable run folder should be known before a model is loaded
    stage = DecoderStage(config)
    folder = run_steps(config, stage)
    parts = stage.module.to(memory_format=torch.contiguous_format)  # as safetensors wants it
    pipeline = VisualDecoder(
        parts.vae, parts.unet, dpm_solver(parts.noise_scheduler), parts.adapter,
        config.decoder.guidance_scale, config.decoder.sampling_steps,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "decoder")
    return folder / "decoder"
