"""What the project itself has saved, damaged: a checkpoint or cached features are as they were, or
are refused. Nothing else is ever loaded."""

from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import Tensor, nn

from metamorph.data.features import FeatureFolder, FeatureIndex, stored_features
from metamorph.data.shard_writer import ShardWriter
from metamorph.errors import SampleError
from metamorph.training.checkpoint import Checkpoints, latest_checkpoint, load_checkpoint
from tests.fuzz.breaking import break_file, linked_copy

STEP = 3


def module_and_optimizer() -> tuple[nn.Linear, torch.optim.Optimizer]:
    """As they are before a checkpoint is loaded."""
    module = nn.Linear(8, 8)
    return module, torch.optim.AdamW(module.parameters(), lr=0.1)


def write_checkpoint(folder: Path) -> None:
    torch.manual_seed(0)
    module, optimizer = module_and_optimizer()
    for parameter in module.parameters():
        parameter.grad = torch.rand_like(parameter)
    optimizer.step()
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.save(STEP, module, optimizer, {"note": "sound"})


def loaded(folder: Path) -> dict | None:
    """All that a run goes on with, None if it would start anew."""
    newest = latest_checkpoint(folder)
    if newest is None:
        return None
    module, optimizer = module_and_optimizer()
    state = load_checkpoint(newest, module, optimizer)
    moments = [value for entry in optimizer.state.values() for value in entry.values()]
    return {"state": state, "tensors": [*module.parameters(), *moments], "chance": torch.rand(4)}


def equal(found: dict | None, sound: dict | None) -> bool:
    if found is None or sound is None:
        return found is sound
    tensors: list[tuple[Tensor, Tensor]] = [
        *zip(found["tensors"], sound["tensors"], strict=True), (found["chance"], sound["chance"]),
    ]  # fmt: skip
    return found["state"] == sound["state"] and all(torch.equal(a, b) for a, b in tensors)


@cache
def sound_checkpoint(folder: Path) -> dict | None:
    return loaded(folder)


def attack_checkpoint(chance: Random, folder: Path) -> str:
    sound = sound_checkpoint(folder)
    assert sound is not None
    with TemporaryDirectory() as below:
        copy = Path(below, "checkpoints")
        linked_copy(folder, copy)
        # Of a checkpoint everything is hashed: almost no change is harmless, so that some are left
        # whole, to show that what is sound is read.
        broken = break_file(chance, copy)[0].name if chance.random() < 0.9 else "nothing"
        found = loaded(copy)
        if found is None:
            return "no checkpoint"
        assert equal(found, sound), f"{broken} was changed, and so was what is loaded"
    return "read as it was"


@pytest.mark.slow
def test_checkpoints(fuzzed, tmp_path):
    write_checkpoint(tmp_path)
    fuzzed(attack_checkpoint, 400)


KEYS = [bytes([number]) * 32 for number in range(6)]


def write_features(folder: Path, dtype: str) -> None:
    folder.mkdir()
    torch.manual_seed(0)
    writer = ShardWriter(folder, FeatureIndex("an encoder", 2, 8, dtype=dtype), shard_rows=3)
    features = nn.functional.normalize(torch.randn(6, 4, 8), dim=-1)
    writer.add(KEYS, *stored_features(features, dtype))
    writer.flush()


def attack_features(chance: Random, folder: Path) -> str:
    source = folder / chance.choice(("bf16", "int8", "fp32"))
    sound = FeatureFolder(source).read(KEYS)
    with TemporaryDirectory() as below:
        copy = Path(below, "features")
        linked_copy(source, copy)
        broken, _ = break_file(chance, copy)
        features = FeatureFolder(copy)
        for number, key in enumerate(KEYS):
            try:
                found = features.read([key])
            except SampleError:
                continue  # of a shard that the index names no longer
            assert torch.equal(found, sound[number : number + 1]), f"{broken.name} was changed"
    return "read as it was"


@pytest.mark.slow
def test_features(fuzzed, tmp_path):
    for dtype in ("bf16", "int8", "fp32"):
        write_features(tmp_path / dtype, dtype)
    fuzzed(attack_features, 600)
