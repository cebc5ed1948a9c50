"""Averages of the decoder's weights, and a first phase that trains its adapter alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from metamorph.config import DecoderConfig, RunConfig
from metamorph.errors import Stopped
from metamorph.monitor.metrics_file import read_metrics
from metamorph.training.decoder_stage import DecoderStage
from metamorph.training.loop import Run, train
from metamorph.training.moving_average import MovingAverage
from tests.processes import run_processes
from tests.tiny_run import tiny_config, tiny_diffusion, write_vision

GOOD, BAD = torch.tensor(False), torch.tensor(True)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def moved(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_averages_are_those_of_their_formula_and_in_the_end_those_of_torch():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    average = MovingAverage(module, 0.5)
    average.follow()
    expected = {name: weight.double() for name, weight in module.state_dict().items()}
    for step in range(1, 6):
        moved(module)
        average.update(step, GOOD)
        decay = min(0.5, (1 + step) / (10 + step))  # 2/11, 3/12, 4/13, ...
        for name, weight in module.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * weight.double()
    for name, weight in average.averages.items():
        torch.testing.assert_close(weight.double(), expected[name], rtol=1e-5, atol=1e-6)
    theirs = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    with average.in_place():
        theirs.update_parameters(module)  # begins with these weights
    for step in range(20, 23):
        moved(module)
        average.update(step, GOOD)
        theirs.update_parameters(module)
    for name, weight in theirs.module.state_dict().items():
        torch.testing.assert_close(average.averages[name], weight)


def test_a_bad_step_moves_no_average():
    module = nn.Linear(3, 2)
    average = MovingAverage(module, 0.9)
    average.follow()
    before = {name: weight.clone() for name, weight in average.averages.items()}
    moved(module)
    average.update(1, BAD)
    assert all(torch.equal(before[name], weight) for name, weight in average.averages.items())


def test_weights_are_as_before_once_their_averages_were_used():
    module = nn.Linear(3, 2).bfloat16()
    average = MovingAverage(module, 0.9)
    average.follow()
    own = [weight.clone() for weight in module.parameters()]
    average.averages["weight"].fill_(0.1)
    with pytest.raises(ZeroDivisionError), average.in_place():
        assert torch.equal(module.weight, torch.full((2, 3), 0.1, dtype=torch.bfloat16))
        raise ZeroDivisionError
    assert all(map(torch.equal, module.parameters(), own))
    assert average.averages["weight"].dtype == torch.float32


def test_a_decay_of_0_keeps_nothing():
    average = MovingAverage(nn.Linear(3, 2), 0.0)
    average.follow()
    average.update(1, GOOD)
    assert average.tensors() == {}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    write_vision(folder / "siglip")
    for name, part in zip(("vae", "unet", "scheduler"), tiny_diffusion(), strict=True):
        part.save_pretrained(folder / name)
    return folder


def config_of(base, tmp_path, name: str = "run", **decoder) -> RunConfig:
    config = tiny_config(base, "decoder", steps=4)
    config.output, config.data.kinds = str(tmp_path / name), {"draw": 1.0}
    config.decoder = DecoderConfig(
        base=str(base), batch_size=2, condition_dropout=0.0, sampling_steps=2, adapter_hidden=16,
        **decoder,
    )  # fmt: skip
    return config


def saved(run: RunConfig) -> dict[str, torch.Tensor]:
    """The tensors of UNet and adapter that a run has saved."""
    folder = Path(run.output) / "decoder"
    return {
        f"{part}.{name}": tensor
        for part in ("unet", "adapter")
        for name, tensor in load_file(folder / part / WEIGHTS).items()
    }


def step_of(stage: DecoderStage, number: int) -> None:
    stage.begin(number)
    stage.forward_backward(number - 1)
    stage.optimizer.step()


def test_the_adapter_is_trained_alone_first(base, tmp_path):
    stage = DecoderStage(
        config_of(base, tmp_path, adapter_steps=1, ema_decay=0.9), torch.device("cpu")
    )
    unet, adapter = stage.module.unet, stage.module.adapter
    before = [weight.clone() for weight in unet.parameters()]
    step_of(stage, 1)
    assert all(weight.grad is None for weight in unet.parameters())
    assert set(stage.optimizer.state) == set(adapter.parameters())
    assert {name.split(".")[1] for name in stage.kept} == {"adapter"}
    assert all(map(torch.equal, unet.parameters(), before))
    stage.optimizer.zero_grad()
    step_of(stage, 2)
    assert {name.split(".")[1] for name in stage.kept} == {"adapter", "unet"}
    assert not any(map(torch.equal, unet.parameters(), before))
    steps = [{stage.optimizer.state[w]["step"].item() for w in p.parameters()}
             for p in (adapter, unet)]  # fmt: skip
    assert steps == [{2}, {1}]


def test_what_is_saved_are_the_averages(base, tmp_path, monkeypatch):
    """Kept beside the run by their formula, from the weights after each step; a sheet that is drawn
    with them in between leaves those as they are."""
    config = config_of(base, tmp_path, adapter_steps=1, ema_decay=0.3)
    config.monitor = replace(config.monitor, samples_every=2, samples=1)
    expected, stepped = {}, DecoderStage.stepped

    def keep(stage, number, bad):
        decay = min(0.3, (1 + number) / (10 + number))
        for name, weight in stage.module.named_parameters():
            if weight.requires_grad:
                old = expected.get(name, begun[name])
                expected[name] = old + (1 - decay) * (weight.detach() - old)
        stepped(stage, number, bad)

    monkeypatch.setattr(DecoderStage, "stepped", keep)
    first = DecoderStage(config, torch.device("cpu"))
    begun = {name: w.detach().clone() for name, w in first.module.named_parameters()}
    train(config)
    found = saved(config)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


def stop_after(config: RunConfig, step: int) -> None:
    """Trains until this step is saved."""
    save = Run.save

    def save_and_stop(run, done):
        save(run, done)
        if done == step:
            run.settle()
            raise Stopped("there")

    Run.save = save_and_stop
    try:
        train(config)
    except Stopped:
        return
    finally:
        Run.save = save
    raise AssertionError("it was not stopped")


@pytest.mark.parametrize("step", [1, 2, 3])
def test_runs_resume_bit_for_bit_before_at_and_after_the_border(base, tmp_path, whole, step):
    part = replace(whole, output=str(tmp_path / "part"))
    stop_after(part, step)
    train(replace(part, resume=True))
    one, other = saved(whole), saved(part)
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    config = config_of(base, tmp_path_factory.mktemp("whole"), adapter_steps=2, ema_decay=0.5)
    config.training.checkpoint_every = 1
    train(config)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("shard", [1, 0])  # DDP, FSDP2
def test_two_processes_keep_the_averages_of_one_through_both_phases(base, tmp_path, whole, shard):
    parts = replace(whole, output=str(tmp_path / "parts"))
    parts.parallel = replace(parts.parallel, shard=shard)
    run_processes(2, stop_after, parts, 2)  # at the border of the phases
    run_processes(2, train, replace(parts, resume=True))
    losses = [
        [line["denoising_loss"] for line in read_metrics(Path(run.output))]
        for run in (whole, parts)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for name, tensor in saved(whole).items():
        torch.testing.assert_close(saved(parts)[name], tensor, rtol=1e-3, atol=1e-3)
