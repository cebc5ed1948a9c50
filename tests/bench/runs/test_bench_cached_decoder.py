"""A decoder's step from files: the same loss, wherever features and latents come from."""

from dataclasses import replace

import pytest
import torch

from bench.runs import cached_decoder
from bench.runs.cached_decoder import PROVIDERS
from bench.runs.ladder import Encoder

CPU = torch.device("cpu")
[SHIPPED] = cached_decoder.cases("cpu")
TINY = replace(
    SHIPPED, images=2, width=16, dropout=0.0,
    encoder=Encoder(layers=1, heads=2, intermediate=16, image_size=64, patch_size=8),
)  # fmt: skip
pytestmark = pytest.mark.usefixtures("few_repeats")


@pytest.mark.slow
def test_every_source_is_verified_and_timed():
    lines = TINY.run(CPU)
    timed = [line for line in lines if line.timing is not None]
    assert [line.provider for line in timed] == [provider.name for provider in PROVIDERS]
    speeds = [line.reason for line in lines if line.timing is None]
    assert len(speeds) == len(PROVIDERS)
    assert all(reason.endswith("pictures/s") for reason in speeds)
