"""Weights gathered in 8 bits: the same training, plain checkpoints, bytes as a plan counts them.

torchao's own layers, in its emulation on a CPU; processes are real, one in this process or two.
"""

import socket
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from metamorph.config import ParallelConfig, RunConfig
from metamorph.errors import UserError
from metamorph.model.float8_gather import check_shares
from metamorph.model.unified import MetaMorph
from metamorph.monitor.metrics_file import read_metrics
from metamorph.training.checkpoint_tensors import SafeReader
from metamorph.training.loop import train
from metamorph.training.rules import check_plan
from tests import fake_libraries
from tests.processes import run_processes
from tests.tiny_run import tiny_config

torchao = pytest.importorskip("torchao.float8.fsdp_utils")
KEYS = {"precision": "fp8", "fp8_backend": "torchao", "fp8_recipe": "tensorwise"}
WEIGHTS = 2 * 7  # layers, projections of each


@pytest.fixture
def one_of_torchrun(monkeypatch):
    """This process is all that torchrun started; on a CPU torchao emulates, for tests alone."""
    fake_libraries.pretend_gpu(monkeypatch)
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    environment = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_PORT": port}
    for name, value in (environment | {"MASTER_ADDR": "localhost"}).items():
        monkeypatch.setenv(name, str(value))


def config_of(folder: Path, name: str, stage: str = "instruct", steps: int = 2, **training):
    keys = KEYS | {"fp8_all_gather": True} | training
    return replace(tiny_config(folder, stage, steps, **keys), output=str(folder / name))


def losses_of(config: RunConfig) -> list[float]:
    return [
        line[name]
        for line in read_metrics(Path(config.output))
        for name in ("text_loss", "visual_cosine", "gradient_norm")
        if name in line
    ]


def train_gathering(config: RunConfig) -> list[torch.dtype]:
    """Trains in one of several processes. Returns the dtypes of what weights gave to be sent."""
    dtypes, gather = set(), torchao.WeightWithDynamicFloat8CastTensor.fsdp_pre_all_gather

    def recorded(self, mesh):
        sent, about = gather(self, mesh)
        dtypes.update(tensor.dtype for tensor in sent)
        return sent, about

    with pytest.MonkeyPatch.context() as patch:
        fake_libraries.pretend_gpu(patch)
        patch.setattr(torchao.WeightWithDynamicFloat8CastTensor, "fsdp_pre_all_gather", recorded)
        train(config)
    return list(dtypes)


def test_two_processes_train_as_one(wide, one_of_torchrun):
    one = config_of(wide, "one", rows_per_step=2)
    train(one)
    two = replace(one, output=str(wide / "two"))
    assert run_processes(2, train_gathering, two) == [[torch.float8_e4m3fn]] * 2
    assert losses_of(two) == pytest.approx(losses_of(one), rel=1e-3, abs=1e-3)
    plain = config_of(wide, "plain", rows_per_step=2, fp8_all_gather=False)
    train(plain)  # gathers in bf16, rounded to float8 later
    assert losses_of(one) != losses_of(plain)
    assert losses_of(one) == pytest.approx(losses_of(plain), rel=0.03, abs=0.06)


@pytest.mark.slow
def test_replicas_of_shards_train_as_one(wide, one_of_torchrun):
    one = config_of(wide, "alone", rows_per_step=4)
    train(one)
    four = replace(one, output=str(wide / "four"), parallel=ParallelConfig(shard=2))
    run_processes(4, train_gathering, four)
    assert losses_of(four) == pytest.approx(losses_of(one), rel=1e-3, abs=1e-3)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(wide, one_of_torchrun, monkeypatch):
    """Scales are found once a step for all weights; those of the first step, and of the first after
    a checkpoint, weight by weight: they are the same."""
    rounded, by_itself = [], torchao.hp_tensor_to_float8_dynamic

    def counted(*arguments, **keywords):
        rounded.append(keywords["gemm_input_role"])
        return by_itself(*arguments, **keywords)

    monkeypatch.setattr(torchao, "hp_tensor_to_float8_dynamic", counted)
    whole = config_of(wide, "whole", steps=6)
    train(whole)
    assert len(rounded) == 2 * WEIGHTS  # of the first step: for the forward, and for the backward
    checkpoints = wide / "whole" / "checkpoints"
    written = SafeReader(checkpoints / "step-000003").read_metadata().state_dict_metadata
    assert {entry.properties.dtype for name, entry in written.items() if "model." in name} == {
        torch.float32
    }
    expected = load_file(wide / "whole" / "model" / "model.safetensors")
    (checkpoints / "step-000006").rename(wide / "aside")
    train(replace(whole, resume=True))
    found = load_file(wide / "whole" / "model" / "model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert {type(p) for p in MetaMorph.from_pretrained(wide / "whole/model").parameters()} == {
        torch.nn.Parameter
    }


def test_what_leaves_room_changes_nothing(wide, one_of_torchrun):
    plain = config_of(wide, "kept")
    full = config_of(wide, "full", activation_checkpointing="full")
    selective = config_of(wide, "selective", activation_checkpointing="selective")
    selective.parallel = ParallelConfig(cpu_offload=True)
    for config in (plain, full, selective):
        train(config)
        assert losses_of(config) == pytest.approx(losses_of(plain), rel=1e-5)


@pytest.mark.slow
def test_compiled_blocks_take_what_was_gathered(wide, one_of_torchrun, monkeypatch):
    """As one graph each; a compiler of kernels, which a run on a CPU is refused, adds nothing."""
    config = config_of(wide, "compiled", compile=True)
    plain = config_of(wide, "not-compiled")
    train(plain)
    compile_block = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", partialmethod(compile_block, backend="aot_eager")
    )
    monkeypatch.setattr("metamorph.training.rules.run.check_libraries", lambda *arguments: None)
    train(config)
    assert losses_of(config) == pytest.approx(losses_of(plain), rel=1e-5)


def test_weights_that_are_not_trained_are_gathered_so_too(wide, one_of_torchrun):
    config, plain = (
        config_of(wide, name, "align", fp8_all_gather=name == "align") for name in ("align", "bf16")
    )
    for run in (config, plain):
        train(run)
    assert losses_of(config) != losses_of(plain)
    assert losses_of(config) == pytest.approx(losses_of(plain), rel=0.03, abs=0.06)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"precision": "bf16", "fp8_recipe": None}, "it needs training.precision fp8, got bf16"),
        (
            {"fp8_backend": "native", "fp8_recipe": None},
            "needs training.fp8_backend torchao, got n",
        ),
        ({"fp8_recipe": None}, "it needs training.fp8_recipe tensorwise, got rowwise"),
        ({"optimizer": "transformer_engine"}, "needs training.optimizer torch, got transformer_e"),
    ],
)
def test_what_it_is_not_for(tmp_path, training, message):
    config = config_of(tmp_path, "run", rows_per_step=2, **training)
    with pytest.raises(UserError, match=f"^training.fp8_all_gather: .*{message}"):
        check_plan(config, 2)


def test_one_process_has_nothing_to_gather(tmp_path):
    config = config_of(tmp_path, "run", rows_per_step=2)
    check_plan(config, 2)
    with pytest.raises(UserError, match="fp8_all_gather: it needs a run that torchrun started"):
        check_plan(config, 1)


def test_rows_are_shared_evenly():
    layers = torch.nn.ModuleDict({"q": torch.nn.Linear(16, 48), "k": torch.nn.Linear(16, 32)})
    check_shares(layers, ["q", "k"], 16)
    message = "fp8_all_gather: k has 32 rows, which 3 processes cannot share evenly; take another"
    with pytest.raises(UserError, match=message):
        check_shares(layers, ["q", "k"], 3)
