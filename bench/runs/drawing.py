"""Pictures drawn by ours and by the default pipeline of diffusers: the same UNet, VAE, scheduler,
noise and conditions, as many steps, as many pictures at once."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from bench.harness.comparison import Comparison
from bench.harness.providers import compiler_absence
from bench.harness.results import Result
from bench.harness.timing import Candidate
from bench.runs.models import missing_package, speeds

OPERATION = "drawing"
GUIDANCE = 3.0
LARGEST_DIFFERENCE = 1  # in fp32, of any pixel, in grey levels of 255
Draw = Callable[[], list]


@dataclass(frozen=True)
class Way:
    """How pictures are drawn; without `ours` by `StableDiffusionPipeline` as it is."""

    precision: str
    ours: bool = True
    compiled: bool = False
    libraries: dict[str, str] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def absence(self, device: torch.device) -> str | None:
        if self.precision == "bf16" and device.type != "cuda":
            return "bfloat16 on a GPU only"
        if self.compiled and (reason := compiler_absence(device)) is not None:
            return reason
        from metamorph.decoder.libraries import DecoderOptions
        from metamorph.errors import UserError

        try:
            DecoderOptions("bf16", **self.libraries).check("diffusion", device)
        except UserError as error:
            return str(error)
        return None


WAYS = {
    "ours fp32": Way("fp32"),
    "diffusers fp32": Way("fp32", ours=False),
    "ours bf16, compiled": Way("bf16", compiled=True),
    "ours bf16": Way("bf16"),
    "ours bf16, xformers": Way("bf16", libraries={"attention": "xformers"}),
    "ours bf16, flash-attn": Way("bf16", libraries={"attention": "flash_attn"}),
    "ours bf16, apex": Way("bf16", libraries={"group_norm": "apex"}),
    "diffusers bf16": Way("bf16", ours=False),
}


@dataclass(frozen=True)
class Case:
    """So many pictures at once, by the toy base that the package ships, or by one with the sizes of
    Stable Diffusion 1.5 and random weights."""

    images: int
    steps: int
    toy: bool
    quick: bool = False

    @property
    def name(self) -> str:
        return f"drawing-{self.images}"

    def __str__(self) -> str:
        base = "the toy base" if self.toy else "Stable Diffusion 1.5, 512 pixels a side"
        return f"{self.images} pictures, {self.steps} steps, {base}"

    def run(self, device: torch.device) -> list[Result]:
        """Verify every way beside diffusers in fp32, then time it."""
        comparison = Comparison(OPERATION, str(self))
        absence = missing_package("diffusers")
        trial = None if absence else _Trial(self, device)
        for name, way in WAYS.items():
            make = partial(_Trial.candidate, trial, way)
            comparison.add(name, make, absence or way.absence(device))
        results = comparison.results(device)
        return results + speeds(results, self.images, "pictures")


def cases(device_type: str) -> list[Case]:
    if device_type == "cpu":
        return [Case(2, 10, toy=True)]
    return [Case(8, 20, toy=False)]


class _Trial:
    """What all share, and the pictures that diffusers draws of it in fp32."""

    def __init__(self, case: Case, device: torch.device):
        from metamorph.decoder.adapter import FeatureAdapter
        from metamorph.decoder.denoising import noise_generator
        from metamorph.decoder.samplers import sampler

        self.device, self.count, self.steps = device, case.images, case.steps
        torch.manual_seed(0)
        self.vae, self.unet, schedule = toy_base() if case.toy else random_base()
        # Of other values the pipeline of diffusers would make these, and say so. A config also
        # names its defaults, which another scheduler would take for its own.
        config = {name: value for name, value in schedule.config.items() if name[0] != "_"}
        self.scheduler = sampler("dpm++", config | {"steps_offset": 1, "clip_sample": False})
        self.adapter = FeatureAdapter(1152, 2048, self.unet.config.cross_attention_dim, 77)
        self.features = torch.nn.functional.normalize(torch.randn(case.images, 64, 1152), dim=-1)
        self.generators = lambda: [noise_generator(0, index) for index in range(case.images)]
        side = self.unet.config.sample_size
        shape = (self.unet.config.in_channels, side, side)
        self.noise = torch.stack([torch.randn(shape, generator=g) for g in self.generators()])
        with _exact_convolutions():
            self.exact = _pixels(self._by_diffusers(Way("fp32", ours=False))())

    def candidate(self, way: Way) -> Candidate:
        draw = self._by_us(way) if way.ours else self._by_diffusers(way)
        if way.precision == "fp32":
            with _exact_convolutions():
                error = (_pixels(draw()) - self.exact).abs().max().item()
            bound = LARGEST_DIFFERENCE
        else:
            error = self._rounding(draw)
            bound = 2 * self._rounding_of_diffusers + 0.5
        return Candidate(draw, lambda _: (), error, bound, by_the_wall=True)

    def _rounding(self, draw: Draw) -> float:
        """How far pictures are from those in fp32, a mean in grey levels."""
        return (_pixels(draw()) - self.exact).abs().mean().item()

    @cached_property
    def _rounding_of_diffusers(self) -> float:
        return self._rounding(self._by_diffusers(Way("bf16", ours=False)))

    def _by_diffusers(self, way: Way) -> Draw:
        from diffusers import StableDiffusionPipeline

        vae, unet, adapter = self._parts(way)
        pipeline = StableDiffusionPipeline(
            vae, None, None, unet, deepcopy(self.scheduler), None, None,
            requires_safety_checker=False,
        )  # fmt: skip
        pipeline.set_progress_bar_config(disable=True)
        with torch.no_grad():
            conditions = adapter(self.features.to(self.device, way.dtype))
        return lambda: (
            pipeline(
                prompt_embeds=conditions,
                negative_prompt_embeds=torch.zeros_like(conditions),
                latents=self.noise.to(self.device, way.dtype),
                num_inference_steps=self.steps,
                guidance_scale=GUIDANCE,
            ).images
        )

    def _by_us(self, way: Way) -> Draw:
        from metamorph.decoder.pipeline import VisualDecoder

        vae, unet, adapter = self._parts(way)
        for part in (vae, unet):
            part.to(memory_format=torch.channels_last)
        decoder = VisualDecoder(vae, unet, self.scheduler, adapter)
        decoder.set_progress_bar_config(disable=True)
        decoder.use_libraries(**way.libraries)
        if way.compiled:
            decoder.compile()
        return lambda: decoder.draw(
            self.features,
            num_inference_steps=self.steps,
            guidance_scale=GUIDANCE,
            generator=self.generators(),
            batch_size=self.count,
        )

    def _parts(self, way: Way) -> list:
        """VAE, UNet and adapter, nobody else's."""
        parts = [deepcopy(part).eval() for part in (self.vae, self.unet, self.adapter)]
        if way.precision == "bf16":
            parts = [part.bfloat16() for part in parts]  # of `to` with a dtype diffusers warns
        return [part.to(self.device) for part in parts]


def toy_base() -> tuple:
    """VAE, UNet and noise schedule that the package ships."""
    from metamorph.decoder.parts import load_base
    from metamorph.quickstart.run import ASSETS

    return load_base(ASSETS / "decoder_base")


def random_base() -> tuple:
    """The same of Stable Diffusion 1.5's sizes, of random weights."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    from metamorph.model.outline import public_sizes

    sizes = public_sizes("base", "stable-diffusion-v1-5")
    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    vae = AutoencoderKL.from_config(sizes["vae"])
    return vae, UNet2DConditionModel.from_config(sizes["unet"]), schedule


@contextmanager
def _exact_convolutions() -> Generator[None]:
    """Without TF32, in which PyTorch computes convolutions of fp32 unless told otherwise."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _pixels(pictures: list) -> Tensor:
    """[pictures, bytes] in fp32."""
    rows = [bytearray(picture.tobytes()) for picture in pictures]
    return torch.stack([torch.frombuffer(row, dtype=torch.uint8) for row in rows]).float()
