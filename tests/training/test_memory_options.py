"""What makes a model fit changes memory, not results: recomputing, compiling, 8-bit moments."""

import os
import signal
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from metamorph.config import ParallelConfig
from metamorph.data.lanes import Lanes
from metamorph.data.packing import TargetCounts
from metamorph.errors import Stopped, UserError
from metamorph.model.unified import MetaMorph
from metamorph.monitor.metrics_file import read_metrics
from metamorph.training.batch import Batch
from metamorph.training.language_stage import LanguageStage
from metamorph.training.loop import train
from tests.processes import run_processes
from tests.tiny_run import replace_language, tiny_config

CPU = torch.device("cpu")


def weights_of(folder) -> dict:
    return MetaMorph.from_pretrained(folder).state_dict()


def losses_of(folder) -> list[tuple[float, float]]:
    return [(line["text_loss"], line["gradient_norm"]) for line in read_metrics(folder.parent)]


class Products(TorchDispatchMode):
    """Counts matrix products and RMS norms' reciprocal roots."""

    def __init__(self):
        super().__init__()
        self.counts = {"mm": 0, "rsqrt": 0}

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function._schema.name.removeprefix("aten::").replace("addmm", "mm")
        if name in self.counts:
            self.counts[name] += 1
        return function(*arguments, **(keywords or {}))


def step_of(config):
    """The stage of a run, and one row of its data as the step takes it."""
    stage = LanguageStage(config, torch.device("cpu"))
    [row] = stage.lanes.next_rows()
    return stage, Batch.of(row, stage.module.vision, CPU), TargetCounts.of([row])


def test_recomputing_changes_no_bit_of_a_run(folder):
    config = tiny_config(folder, "instruct", steps=3)
    expected = weights_of(train(config))
    for mode in ("selective", "full"):
        other = replace(config, output=str(folder / mode))
        other.training = replace(config.training, activation_checkpointing=mode)
        found = weights_of(train(other))
        assert all(torch.equal(found[name], weight) for name, weight in expected.items()), mode


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_full_recomputes_products_and_selective_only_what_is_cheap(folder, model_type):
    replace_language(folder, model_type)
    counts, kept = {}, {}
    for mode in ("none", "selective", "full"):
        config = tiny_config(folder, "instruct", activation_checkpointing=mode)
        stage, batch, numbers = step_of(config)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, saved=saved: saved.append(x.numel()) or x, lambda x: x
        ):
            text, visual, *_ = stage.step_losses(batch, numbers)
        with Products() as products:
            (text + visual).backward()
        counts[mode], kept[mode] = products.counts, sum(saved)
    # 7 products in each of 2 blocks, and 2 norms.
    assert counts["full"]["mm"] >= counts["none"]["mm"] + 12
    assert counts["selective"]["mm"] == counts["none"]["mm"]
    assert counts["selective"]["rsqrt"] == counts["full"]["rsqrt"] > counts["none"]["rsqrt"]
    assert kept["full"] < kept["none"] and kept["selective"] < kept["none"]


def test_compiled_blocks_agree_with_eager_ones(folder):
    config = tiny_config(folder, "instruct")
    eager, batch, counts = step_of(config)
    expected = eager.step_losses(batch, counts)
    for block in eager.module.language.model.layers:
        block.compile(fullgraph=True, backend="aot_eager")
    for found, value in zip(eager.step_losses(batch, counts), expected, strict=True):
        torch.testing.assert_close(found, value)


def test_compiling_for_a_cpu_is_refused(folder):
    with pytest.raises(UserError, match="training.compile: it needs a GPU"):
        train(tiny_config(folder, "instruct", compile=True))


def test_weights_in_host_memory_train_the_same(folder):
    config = tiny_config(folder, "instruct", steps=2, rows_per_step=2)
    expected = losses_of(train(config))
    config.output, config.parallel = str(folder / "offloaded"), ParallelConfig(cpu_offload=True)
    run_processes(2, train, config)
    found = losses_of(folder / "offloaded" / "model")
    for line, values in zip(found, expected, strict=True):
        assert line == pytest.approx(values, rel=1e-5)


def test_half_precision_weights_need_an_optimizer_that_rounds_by_chance(folder):
    with pytest.raises(UserError, match="training.weights: bf16 .* adamw8bit does, got torch"):
        train(tiny_config(folder, "instruct", weights="bf16"))


@pytest.fixture
def eager_optimizer():
    """torchao compiles its step, which takes half a minute on a CPU."""
    with torch.compiler.set_stance("force_eager"):
        yield


def test_8_bit_moments_train_nearly_as_well(folder, eager_optimizer):
    config = tiny_config(folder, "instruct", steps=12)
    config.training.learning_rate = 3e-3
    expected = losses_of(train(config))
    for weights in ("fp32", "bf16"):
        other = replace(config, output=str(folder / weights))
        other.training = replace(config.training, optimizer="adamw8bit", weights=weights)
        found = losses_of(train(other))
        assert found[-1][0] == pytest.approx(expected[-1][0], rel=0.05)
        dtypes = {weight.dtype for weight in weights_of(folder / weights / "model").values()}
        assert dtypes == {torch.float32 if weights == "fp32" else torch.bfloat16}


def test_8_bit_moments_and_chance_are_resumed_bit_for_bit(folder, eager_optimizer, monkeypatch):
    config = tiny_config(folder, "instruct", steps=4, optimizer="adamw8bit", weights="bf16")
    torch.manual_seed(0)  # rounding by chance draws from it
    expected = weights_of(train(config))
    torch.manual_seed(0)
    other = replace(config, output=str(folder / "parts"))
    next_rows, calls = Lanes.next_rows, []

    def stopped_in_second_step(self):
        calls.append(None)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return next_rows(self)

    with monkeypatch.context() as patch:
        patch.setattr(Lanes, "next_rows", stopped_in_second_step)
        with pytest.raises(Stopped):
            train(other)
    torch.manual_seed(1)
    found = weights_of(train(replace(other, resume=True)))
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_8_bit_moments_are_for_one_process(folder):
    config = tiny_config(folder, "instruct", rows_per_step=2, optimizer="adamw8bit")
    with pytest.raises(AssertionError, match="adamw8bit is for a run of one process"):
        run_processes(2, train, config)
