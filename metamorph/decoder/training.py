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
from tqdm import tqdm

from metamorph.config import RunConfig
from metamorph.data.pictures import PictureStream
from metamorph.data.sources import open_source
from metamorph.decoder.adapter import FeatureAdapter
from metamorph.decoder.pipeline import VisualDecoder, dpm_solver
from metamorph.errors import Stopped, UserError
from metamorph.model.vision import VisionEncoder
from metamorph.training.checkpoint import load_checkpoint, save_checkpoint
from metamorph.training.run_folder import (
    MetricsFile,
    StopSignal,
    prepare_run_folder,
    resolve_device,
)
from metamorph.training.schedule import learning_rate


class DecoderTrainer(nn.Module):
    """Frozen encoder and VAE, trained UNet and adapter, and their loss."""

    def __init__(self, config: RunConfig):
        super().__init__()
        base, start = Path(config.decoder.base), config.model
        if not (base / "unet").is_dir():
            raise UserError(f"decoder.base: {base} is not a diffusers folder with unet/ and vae/")
        if not (start.vision or start.folder):
            raise UserError("model: give model.vision (a SigLIP folder) or model.folder")
        encoder_folder = start.vision or Path(start.folder) / "encoder"
        torch.manual_seed(config.seed)  # the adapter starts from scratch
        self.vision = VisionEncoder.from_pretrained(encoder_folder, start.grid)
        # Without `low_cpu_mem_usage=False` diffusers asks for a package that nothing else needs.
        options = {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}
        self.vae = AutoencoderKL.from_pretrained(base, subfolder="vae", **options)
        self.vae.requires_grad_(False)
        self.unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet", **options).train()
        self.noise_scheduler = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
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


def train_decoder(config: RunConfig) -> Path:
    """Runs the decoder stage and returns ``output/decoder``, in diffusers' layout.

    All randomness of a step comes from (seed, step), so an interrupted and resumed run equals an
    uninterrupted one. Raises ``UserError`` for what a user can mend.
    """
    device = resolve_device(config.device)
    folder, checkpoint = prepare_run_folder(config)
    trainer = DecoderTrainer(config).to(device)
    training = config.training
    trained = [*trainer.unet.parameters(), *trainer.adapter.parameters()]
    optimizer = torch.optim.AdamW(
        trained,
        lr=training.learning_rate,
        betas=(training.beta1, training.beta2),
        weight_decay=training.weight_decay,
        fused=True,
    )
    stream = PictureStream(open_source(config.data, config.seed))
    first_step = 0
    if checkpoint is not None:
        state = load_checkpoint(checkpoint, trainer, optimizer)
        first_step = state["step"]
        stream.load_state_dict(state["stream"])

    metrics = MetricsFile(folder, first_step)
    bar = tqdm(range(training.steps), initial=first_step, desc="decoder", mininterval=1)
    losses = []

    def save(step: int) -> None:
        state = {"stream": stream.state_dict()}
        save_checkpoint(folder, step, trainer, optimizer, state, training.keep_checkpoints)

    with StopSignal() as stop:
        for step in range(first_step, training.steps):
            rate = learning_rate(step, training)
            for group in optimizer.param_groups:
                group["lr"] = rate
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            pictures = stream.take(config.decoder.batch_size)
            with torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bf16"):
                loss = trainer(pictures, generator)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, training.gradient_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
            bar.update()

            done = step + 1
            if done % training.log_every == 0 or done == training.steps:
                mean = torch.stack(losses).mean().item()
                losses.clear()
                if not mean < float("inf"):
                    raise UserError(f"step {done}: the loss is not finite; lower the learning rate")
                metrics.write(step=done, noise_error=mean, learning_rate=rate)
                bar.set_postfix_str(f"noise error {mean:.3f}", refresh=False)
            if done % training.checkpoint_every == 0 and done < training.steps:
                save(done)
            if stop.requested and done < training.steps:
                save(done)
                bar.close()
                raise Stopped(f"stopped after step {done} of {training.steps}")
    bar.close()
    for cause, count in stream.skipped.items():
        print(f"skipped {count} samples: {cause}")
    pipeline = VisualDecoder(
        trainer.vae, trainer.unet, dpm_solver(trainer.noise_scheduler), trainer.adapter,
        config.decoder.guidance_scale, config.decoder.sampling_steps,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "decoder")
    return folder / "decoder"
