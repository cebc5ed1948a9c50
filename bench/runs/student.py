"""Pictures drawn by a student of few steps without guidance, beside its teacher with it."""

from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bench.harness.comparison import Comparison
from bench.harness.providers import Provider
from bench.harness.results import Result
from bench.harness.timing import Candidate
from bench.harness.verification import relative_error
from bench.runs.drawing import toy_base
from bench.runs.models import missing_package, speeds

OPERATION = "drawing in few steps"
LARGEST_ERROR = 1e-3  # of the worst picture, relative, beside float64


@dataclass(frozen=True)
class Drawing:
    """How a decoder was saved to draw."""

    sampler: str
    steps: int
    guidance_scale: float


PROVIDERS = (  # how the stages distill and decoder save theirs
    Provider("ours, a student of 4 steps", Drawing("ddim", 4, 1.0)),
    Provider("ours, its teacher of 20 with guidance", Drawing("dpm++", 20, 3.5)),
)


@dataclass(frozen=True)
class Case:
    """So many pictures at once by the toy base that the package ships: a student's UNet is that of
    its teacher with other weights, which take the same time."""

    images: int
    name: str = "student"
    quick: bool = False

    def __str__(self) -> str:
        return f"{self.images} pictures, the toy base"

    def run(self, device: torch.device) -> list[Result]:
        """Verify both beside float64, then time them."""
        comparison = Comparison(OPERATION, str(self))
        absence = missing_package("diffusers")
        trial = None if absence else _Trial(self, device)
        for provider in PROVIDERS:
            comparison.add(
                provider.name, partial(_Trial.candidate, trial, provider.method), absence
            )
        results = comparison.results(device)
        return results + speeds(results, self.images, "pictures")


def cases(device_type: str) -> list[Case]:
    return [Case(8 if device_type == "cpu" else 64)]


class _Trial:
    """The parts of a decoder, and features to draw from."""

    def __init__(self, case: Case, device: torch.device):
        from metamorph.decoder.adapter import FeatureAdapter

        vae, unet, self.noise_scheduler = toy_base()
        width = 64
        torch.manual_seed(0)
        adapter = FeatureAdapter(width, 256, unet.config.cross_attention_dim)
        self.parts = [part.to(device) for part in (vae, unet, adapter)]
        self.exact_parts = [deepcopy(part).double() for part in self.parts]
        self.features = torch.randn(case.images, 16, width).to(device)

    def candidate(self, drawing: Drawing) -> Candidate:
        draw = partial(self._draw, self._decoder(drawing, self.parts), self.features)
        exact = self._draw(self._decoder(drawing, self.exact_parts), self.features.double())
        error = relative_error(_rows(draw()), _rows(exact))
        return Candidate(draw, lambda _: (), error, LARGEST_ERROR)

    def _decoder(self, drawing: Drawing, parts: list):
        from metamorph.decoder.pipeline import VisualDecoder
        from metamorph.decoder.samplers import sampler

        vae, unet, adapter = parts
        scheduler = sampler(drawing.sampler, self.noise_scheduler.config)
        decoder = VisualDecoder(
            vae, unet, scheduler, adapter, drawing.guidance_scale, drawing.steps
        )
        decoder.set_progress_bar_config(disable=True)
        return decoder

    def _draw(self, decoder, features: Tensor) -> Tensor:
        seeds = [*range(len(features))]
        return decoder.draw(features, seeds=seeds, batch_size=len(features), output_type="pt")


def _rows(pictures: Tensor) -> Tensor:
    """[pictures, 1, 3 x pixels] in float64: each picture is judged by itself."""
    return pictures.double().cpu().flatten(1)[:, None]
