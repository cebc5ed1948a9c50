"""The same features drawn in one pass of a ViT and by guided diffusion, by networks of equal size.

Equal in operations: one call of the ViT takes as many as one call of the UNet. Equal in weights:
the ViT has as many as UNet and adapter. Each as near as multiples of 64 in its width come to it.
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from bench.harness.comparison import Comparison
from bench.harness.results import Result
from bench.harness.timing import Candidate
from bench.harness.verification import relative_error
from bench.runs.diffusion import LARGEST_ERROR, SAMPLING, counted, pixels_of
from bench.runs.drawing import random_base, toy_base
from bench.runs.models import missing_package, speeds

if TYPE_CHECKING:
    from metamorph.decoder.kinds import OpenedDecoder

OPERATION = "drawing features"
OPERATIONS, WEIGHTS = "ours, one pass, equal operations", "ours, one pass, equal weights"
DIFFUSION = "ours, diffusion"
DENOISING_STEPS, GUIDANCE = 20, 3.0
STEP = 64  # of widths, and channels of an attention head


@dataclass(frozen=True)
class Case:
    """So many pictures at once, of `tokens` features of `width` each, by the toy base that the
    package ships, or by one with the sizes of Stable Diffusion 1.5 and random weights. The ViT has
    `layers` and draws patches of `patch` pixels."""

    images: int
    toy: bool = True
    tokens: int = 16
    width: int = 96
    layers: int = 4
    patch: int = 8
    quick: bool = False

    @property
    def name(self) -> str:
        return "one-pass-toy" if self.toy else "one-pass-large"

    def __str__(self) -> str:
        base = "the toy base" if self.toy else "Stable Diffusion 1.5, 512 pixels a side"
        return f"{self.images} pictures, {DENOISING_STEPS} steps, guided, {base}"

    def run(self, device: torch.device) -> list[Result]:
        """Verify every decoder beside float64, then time it."""
        comparison, trial = Comparison(OPERATION, str(self)), None
        absence = missing_package("diffusers")
        if absence is None:
            trial = _Trial(self, device)
        for name in (OPERATIONS, WEIGHTS, DIFFUSION):
            comparison.add(name, partial(_Trial.candidate, trial, name), absence)
        results = comparison.results(device)
        sizes = [] if trial is None else trial.described(str(self))
        return results + speeds(results, self.images, "pictures") + sizes


def cases(device_type: str) -> list[Case]:
    """The toy; and where there is a GPU, which waits for the host in the toy, Stable Diffusion's
    sizes."""
    if device_type == "cpu":
        return [Case(8)]
    large = Case(4, toy=False, tokens=64, width=1152, layers=24, patch=16)
    return [Case(64), large]


class _Trial:
    """Random decoders of equal sizes, and what each should draw by float64."""

    def __init__(self, case: Case, device: torch.device):
        from metamorph.decoder.one_pass import OnePassDecoder

        torch.manual_seed(0)
        self.case, self.device = case, device
        self.precision = "bf16" if device.type == "cuda" else "fp32"
        self.features = F.normalize(
            torch.randn(case.images, case.tokens, case.width, device=device), dim=-1
        )
        diffusion = _diffusion(case)
        unet, scale = diffusion.unet, 2 ** (len(diffusion.vae.config.block_out_channels) - 1)
        self.side = scale * unet.config.sample_size
        with torch.device("meta"):
            call = type(unet).from_config(unet.config)
            noisy = torch.empty(1, unet.config.in_channels, *[unet.config.sample_size] * 2)
            condition = torch.empty(1, case.tokens, unet.config.cross_attention_dim)
            operations = counted(lambda: call(noisy, torch.zeros(1), condition))[1]
        weights = _weights(unet) + _weights(diffusion.adapter)
        self.sizes = {DIFFUSION: (weights, operations)}
        self.decoders: dict[str, OpenedDecoder] = {DIFFUSION: diffusion.to(device)}
        for name, place, wanted in ((OPERATIONS, 1, operations), (WEIGHTS, 0, weights)):
            width = self._nearest(place, wanted)
            self.sizes[name] = self._outlined(width)
            self.decoders[name] = OnePassDecoder(self._vit(width).eval()).to(device)

    def candidate(self, name: str) -> Candidate:
        decoder = self.decoders[name]
        options: dict[str, Any] = {"batch_size": self.case.images}
        if name == DIFFUSION:
            options |= {"num_inference_steps": DENOISING_STEPS, "guidance_scale": GUIDANCE}
        draw, exact = partial(self._draw, decoder, self.precision, options), deepcopy(decoder)
        for part in exact.components.values():
            if isinstance(part, nn.Module):
                part.double()
        wanted = self._draw(exact, "fp32", options)
        error = relative_error(pixels_of(draw()), pixels_of(wanted))
        return Candidate(draw, lambda _: (), error, LARGEST_ERROR[SAMPLING][self.precision])

    def described(self, case: str) -> list[Result]:
        """The sizes that were compared."""
        return [
            Result(OPERATION, case, name, "ok", f"{weights:,} weights, {operations / 1e9:.4g} "
                   f"GFLOP a call and picture")
            for name, (weights, operations) in self.sizes.items()
        ]  # fmt: skip

    def _draw(self, decoder: "OpenedDecoder", precision: str, options: dict) -> list:
        from metamorph.model.precision import autocast

        with autocast(precision, self.device):
            return decoder.draw(self.features, seeds=range(self.case.images), **options)

    def _vit(self, width: int) -> nn.Module:
        from metamorph.decoder.vit_decoder import vit_decoder

        case = self.case
        return vit_decoder(
            case.width, width=width, layers=case.layers, heads=width // STEP,
            picture_size=self.side, patch_size=case.patch,
        )  # fmt: skip

    def _outlined(self, width: int) -> tuple[int, int]:
        """Weights, and operations of a call, without memory."""
        with torch.device("meta"):
            vit = self._vit(width)
            features = torch.empty(1, self.case.tokens, self.case.width)
            return _weights(vit), counted(lambda: vit(features))[1]

    def _nearest(self, place: int, wanted: int) -> int:
        """The width whose weights or operations, by `place`, are nearest; both grow with it."""
        width, below = STEP, 0
        while (size := self._outlined(width)[place]) < wanted:
            width, below = width + STEP, size
        return width - STEP if below and wanted - below < size - wanted else width


def _diffusion(case: Case):
    """A decoder with an adapter of random weights."""
    from metamorph.decoder.adapter import FeatureAdapter
    from metamorph.decoder.pipeline import VisualDecoder
    from metamorph.decoder.samplers import sampler

    vae, unet, schedule = toy_base() if case.toy else random_base()
    adapter = FeatureAdapter(case.width, 256, unet.config.cross_attention_dim)
    for part in (vae, unet, adapter):
        part.eval()
    decoder = VisualDecoder(vae, unet, sampler("dpm++", schedule.config), adapter)
    decoder.set_progress_bar_config(disable=True)
    return decoder


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
