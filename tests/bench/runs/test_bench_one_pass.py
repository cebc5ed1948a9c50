"""One-pass decoding beside guided diffusion: sizes that are equal, drawings that are right."""

import pytest
import torch

from bench.runs import one_pass
from bench.runs.one_pass import DIFFUSION, OPERATIONS, WEIGHTS
from metamorph.model import outline
from tests.tiny_run import tiny_diffusion

CPU = torch.device("cpu")
TINY = one_pass.Case(1, toy=False, tokens=4, width=24, layers=1, patch=16)
pytestmark = pytest.mark.usefixtures("few_repeats")


@pytest.fixture(autouse=True)
def tiny_base(monkeypatch):
    """In the place of Stable Diffusion's sizes, which a GPU draws with."""
    vae, unet, _ = tiny_diffusion()
    sizes = {"vae": dict(vae.config), "unet": dict(unet.config)}
    monkeypatch.setattr(outline, "public_sizes", lambda key, name: sizes)
    monkeypatch.setattr(one_pass, "DENOISING_STEPS", 2)


def test_all_are_verified_and_timed_and_say_how_large_they_are():
    lines = TINY.run(CPU)
    assert {line.status for line in lines} == {"ok"}
    timed = [line.provider for line in lines if line.timing is not None]
    assert timed == [OPERATIONS, WEIGHTS, DIFFUSION]
    assert sum(line.reason.endswith(" pictures/s") for line in lines) == 3
    assert sum("GFLOP a call and picture" in line.reason for line in lines) == 3


def test_the_shipped_sizes_are_equal():
    [shipped] = one_pass.cases("cpu")
    sizes = one_pass._Trial(shipped, CPU).sizes
    (_, operations), (weights, _) = sizes[OPERATIONS], sizes[WEIGHTS]
    assert operations == pytest.approx(sizes[DIFFUSION][1], rel=0.1)
    assert weights == pytest.approx(sizes[DIFFUSION][0], rel=0.1)


def test_a_wrong_picture_is_not_timed(monkeypatch):
    draw = one_pass._Trial._draw

    def wrong(trial, decoder, precision, options):
        drawn = draw(trial, decoder, precision, options)
        return drawn if decoder in trial.decoders.values() else [p.rotate(90) for p in drawn]

    monkeypatch.setattr(one_pass._Trial, "_draw", wrong)
    lines = TINY.run(CPU)
    failed = [line.provider for line in lines if line.status == "failed"]
    assert failed == [OPERATIONS, WEIGHTS, DIFFUSION]
    assert not any(line.timing for line in lines)
