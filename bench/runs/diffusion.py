"""The diffusion decoder: pictures drawn from features, and a step of its training."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.harness.comparison import Comparison
from bench.harness.machine import ROOT
from bench.harness.providers import Provider, unless_on_gpu
from bench.harness.results import Result
from bench.harness.timing import Candidate
from bench.harness.verification import relative_error
from bench.runs.models import Steps, missing_package, speeds
from metamorph.training.draws import Draws

SAMPLING, TRAINING = "diffusion sampling", "diffusion training step"
# Relative, beside float64: of the worst picture, and of the worse of loss and judged gradients.
LARGEST_ERROR = {
    SAMPLING: {"fp32": 1e-3, "bf16": 5e-2},
    TRAINING: {"fp32": 1e-4, "bf16": 0.2},
}
PROVIDERS = (  # the method is the precision
    Provider("ours fp32", "fp32"),
    Provider("ours bf16", "bf16", unless_on_gpu("bfloat16 on a GPU only")),
)
JUDGED = ("unet.conv_in.weight", "unet.conv_out.weight", "adapter.layers.0.weight")


@dataclass(frozen=True)
class Case:
    """So many pictures at once, by the toy decoder that the package ships."""

    images: int
    quick: bool = False

    @property
    def name(self) -> str:
        return f"diffusion-{self.images}"

    def __str__(self) -> str:
        return f"{self.images} pictures, the toy base"

    def run(self, device: torch.device) -> list[Result]:
        """Verify every precision beside float64, then time it."""
        absence = missing_package("diffusers")
        trial = None if absence else _Trial(self, device)
        found = []
        for operation in (SAMPLING, TRAINING):
            comparison = Comparison(operation, str(self))
            for provider in PROVIDERS:
                make = partial(_Trial.candidate, trial, operation, provider.method)
                comparison.add(provider.name, make, absence or provider.absence(device))
            work = None if absence else trial.flops[operation]
            results = comparison.results(device, work, "TFLOP/s")
            found += results + speeds(results, self.images, "pictures")
        return found


def cases(device_type: str) -> list[Case]:
    """The same toy on every device; what it does on a GPU is wait for the host."""
    return [Case(2 if device_type == "cpu" else 64)]


class _Trial:
    """A decoder in training, and what it should do by float64."""

    def __init__(self, case: Case, device: torch.device):
        from metamorph.config.reading import load_config
        from metamorph.data.toy.tasks import make_task
        from metamorph.quickstart.run import ASSETS
        from metamorph.training.decoder_stage import DecoderTrainer

        folders = {"model.vision": ASSETS / "encoder", "decoder.base": ASSETS / "decoder_base"}
        overrides = {key: str(folder) for key, folder in folders.items()}
        config = load_config(ROOT / "configs" / "toy" / "decoder.yaml", overrides)
        self.device = device
        self.trainer = DecoderTrainer(config).to(device)
        tasks = [make_task(0, number, "train", {"draw": 1.0}) for number in range(case.images)]
        self.pictures = [task.sample.images[0] for task in tasks]
        self.batch = _batch(self.trainer, self.pictures).to(device)
        with torch.no_grad():
            pixels = self.trainer.vision.preprocess(self.pictures)
            self.features = self.trainer.vision(pixels)  # [B, tokens, C]
        self.decoder, self.steps = _decoder(self.trainer, config), _steps(self.trainer)
        exact = deepcopy(self.trainer).double()
        drawn, drawing = counted(partial(self._draw, _decoder(exact, config), "fp32"))
        self.exact_pixels = pixels_of(drawn)
        backward = partial(self._backward, partial(noise_error, exact, self.pictures), "fp32")
        self.exact_results, training = counted(partial(_steps(exact).results, backward))
        self.flops = {SAMPLING: drawing, TRAINING: training}

    def candidate(self, operation: str, precision: str) -> Candidate:
        bound = LARGEST_ERROR[operation][precision]
        if operation == TRAINING:

            def loss(draw: Draws) -> Tensor:
                return self.trainer(self.batch, draw)[0]

            backward = partial(self._backward, loss, precision)
            return self.steps.candidate(backward, self.exact_results, bound)
        draw = partial(self._draw, self.decoder, precision)
        error = relative_error(pixels_of(draw()), self.exact_pixels)
        return Candidate(draw, lambda _: (), error, bound)

    def _draw(self, decoder, precision: str) -> list:
        from metamorph.decoder.denoising import noise_generator
        from metamorph.model.precision import autocast

        with autocast(precision, self.device):
            generators = [noise_generator(0, index) for index in range(len(self.features))]
            return decoder.draw(self.features, generator=generators)

    def _backward(self, loss: Callable[[Draws], Tensor], precision: str) -> Tensor:
        from metamorph.model.precision import autocast

        with autocast(precision, self.device):
            # Seed 1 keeps the condition of the first picture: without any, its gradients are 0.
            value = loss(Draws(1, 0, range(len(self.pictures))))
        value.backward()
        return value.detach()


def _batch(trainer: nn.Module, pictures: list):
    from metamorph.data.pictures import PreparedPicture
    from metamorph.training.picture_batch import PictureBatch

    squares = (trainer.encoder_square, trainer.square)
    return PictureBatch.of(
        [PreparedPicture(*(np.asarray(square(p)) for square in squares)) for p in pictures]
    )


def noise_error(trainer: nn.Module, pictures: list, draw: Draws) -> Tensor:
    """The loss by its definition, in float64, with the random numbers of `DecoderTrainer`."""
    from diffusers.image_processor import VaeImageProcessor

    device, unet, vae = trainer.unet.device, trainer.unet, trainer.vae
    count = (len(pictures),)
    kept = draw(torch.rand, count) >= trainer.dropout
    pixels = VaeImageProcessor().preprocess(pictures).to(device, torch.float64)
    posterior = vae.encode(pixels).latent_dist

    def normal() -> Tensor:
        return draw(torch.randn, posterior.mean.shape).to(device, torch.float64)

    clean = (posterior.mean + posterior.std * normal()) * vae.config.scaling_factor
    noise = normal()
    schedule = trainer.noise_scheduler.alphas_cumprod
    timesteps = draw(partial(torch.randint, len(schedule)), count)
    signal = schedule[timesteps].to(device, torch.float64)[:, None, None, None]
    noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
    features = trainer.vision(trainer.vision.preprocess(pictures).double())
    conditions = trainer.adapter(features) * kept.to(device)[:, None, None]
    return F.mse_loss(unet(noisy, timesteps.to(device), conditions).sample, noise)


def _decoder(trainer: nn.Module, config):
    """What `DecoderTrainer.save` saves."""
    from metamorph.decoder.pipeline import VisualDecoder
    from metamorph.decoder.samplers import sampler

    scheduler, options = sampler("dpm++", trainer.noise_scheduler.config), config.decoder
    decoder = VisualDecoder(
        trainer.vae,
        trainer.unet,
        scheduler,
        trainer.adapter,
        options.guidance_scale,
        options.sampling_steps,
    )
    decoder.set_progress_bar_config(disable=True)
    return decoder


def _steps(trainer: nn.Module) -> Steps:
    parameters = [*trainer.unet.parameters(), *trainer.adapter.parameters()]
    return Steps(parameters, [trainer.get_parameter(name) for name in JUDGED])


def pixels_of(pictures: list) -> Tensor:
    """[pictures, 1, 3 x pixels] in float64: each picture is judged by itself."""
    rows = [bytearray(picture.tobytes()) for picture in pictures]
    return torch.stack([torch.frombuffer(row, dtype=torch.uint8) for row in rows])[:, None].double()


def counted(call: Callable) -> tuple:
    """What a call returns, and its FLOPs: convolutions and matrix products, by their shapes."""
    # The other implementations of attention are not counted on every device.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        result = call()
    return result, counter.get_total_flops()
