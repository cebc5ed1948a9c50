"""A step of the diffusion decoder's training from files: encoder and VAE live, or cached."""

import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench.harness.comparison import Comparison
from bench.harness.machine import ROOT
from bench.harness.providers import Provider
from bench.harness.results import Result
from bench.harness.timing import Candidate
from bench.runs.ladder import Encoder
from bench.runs.models import missing_package, speeds

OPERATION = "decoder step from files"
LARGEST_ERROR = 1e-4  # of the loss, relative; caches are stored in fp32


@dataclass(frozen=True)
class Sources:
    """What a step reads in place of running a network."""

    features: bool
    latents: bool


PROVIDERS = (
    Provider("ours, live", Sources(features=False, latents=False)),
    Provider("ours, features cached", Sources(features=True, latents=False)),
    Provider("ours, features and latents cached", Sources(features=True, latents=True)),
)


@dataclass(frozen=True)
class Case:
    """So many pictures, opened in every step, for the toy base that the package ships, and an
    encoder with so400m's width, patches and picture size, of few layers."""

    images: int
    encoder: Encoder
    width: int = 1152
    dropout: float = 0.7  # of the paper: these pictures are not encoded
    name: str = "decoder-cached"
    quick: bool = False

    def __str__(self) -> str:
        return (
            f"{self.images} pictures, the toy base, a random SigLIP of {self.encoder.layers} "
            f"layers of {self.width}, {self.encoder.image_size} pixels, {self.dropout:.0%} dropped"
        )

    def run(self, device: torch.device) -> list[Result]:
        """Verify the loss of every source, then time steps of the same pictures."""
        comparison = Comparison(OPERATION, str(self))
        absence = missing_package("diffusers")
        with tempfile.TemporaryDirectory() as folder:
            trial = None if absence else _Trial(self, Path(folder), device)
            for provider in PROVIDERS:
                make = partial(_Trial.candidate, trial, provider.method)
                comparison.add(provider.name, make, absence)
            results = comparison.results(device)
        return results + speeds(results, self.images, "pictures")


def cases(device_type: str) -> list[Case]:
    """On a CPU one of so400m's 27 layers, which costs what it costs: the others would add to it."""
    return [Case(8, Encoder(layers=1))] if device_type == "cpu" else [Case(64, Encoder())]


class _Trial:
    """Pictures on disk, their caches, and a stage for each source."""

    def __init__(self, case: Case, folder: Path, device: torch.device):
        from metamorph.config.reading import load_config
        from metamorph.data.encode import encode
        from metamorph.data.mixture import parts_of
        from metamorph.data.opening import open_source
        from metamorph.data.toy.tasks import make_task
        from metamorph.decoder.latents import VaeEncoder
        from metamorph.quickstart.run import ASSETS

        self.folder, self.device = folder, device
        torch.manual_seed(0)
        vision = case.encoder.build(case.width, device)
        vision.save_pretrained(folder / "siglip")
        (folder / "pictures").mkdir()
        for number in range(case.images):
            picture = make_task(0, number, "train", {"draw": 1.0}).sample.images[0]
            picture.resize((512, 384)).save(folder / "pictures" / f"{number}.jpg")
        given = {
            "model.vision": folder / "siglip", "model.grid": 8, "data.source": "pictures",
            "data.path": folder / "pictures", "data.kinds": "{}",
            "decoder.base": ASSETS / "decoder_base", "decoder.batch_size": case.images,
            "decoder.condition_dropout": case.dropout,
        }  # fmt: skip
        overrides = {key: str(value) for key, value in given.items()}
        self.config = load_config(ROOT / "configs" / "toy" / "decoder.yaml", overrides)
        vae = VaeEncoder(self.config.decoder.base, self.config.decoder.fit, device)
        parts = parts_of(open_source(self.config.data, 0, words=False))
        encode(parts, vision, folder / "cache", "fp32", latents=vae, batch_size=case.images)
        self.exact = self._step(self._stage(PROVIDERS[0].method))

    def _stage(self, sources: Sources):
        from metamorph.training.decoder_stage import DecoderStage

        cache, data, decoder = str(self.folder / "cache"), self.config.data, self.config.decoder
        if sources.features:
            data = replace(data, features=cache)
        if sources.latents:
            decoder = replace(decoder, latents=f"{cache}/latents")
        return DecoderStage(replace(self.config, data=data, decoder=decoder), self.device)

    def candidate(self, sources: Sources) -> Candidate:
        stage = self._stage(sources)
        error = ((self._step(stage) - self.exact).abs() / self.exact).item()
        return Candidate(partial(self._step, stage), lambda _: (), error, LARGEST_ERROR)

    def _step(self, stage) -> Tensor:
        """Reads and learns from the same pictures, with the same random numbers."""
        losses = stage.forward_backward(0)
        stage.optimizer.step()
        stage.optimizer.zero_grad()
        return losses["denoising_loss"]
