"""What a plan says FSDP holds and sends, against FSDP itself under torch's fake process group."""

import math
from collections import Counter

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from metamorph.config import TrainingConfig
from metamorph.costs.memory import working_bytes
from metamorph.costs.sharding import (
    Traffic,
    fake_processes,
    mesh_shape,
    traffic,
    units,
)
from metamorph.errors import UserError
from metamorph.model.float8_gather import scale_weights
from metamorph.model.precision import autocast, convert_to_float8
from metamorph.training.parallel import make_mesh, shard
from metamorph.training.trainable import choose_trainable
from tests import fake_libraries
from tests.costs.random_step import ROW, random_model

CPU = torch.device("cpu")


def test_a_process_holds_the_first_of_equal_pieces():
    model = random_model(0)
    choose_trainable(model, "instruct")
    shapes = {name: p.shape for name, p in model.named_parameters()}
    with fake_processes(5):
        shard(model, model, mesh=make_mesh(0, CPU))
        found = {(unit.name, unit.is_sharded): unit for unit in units(model)}
    assert set(found) == {
        ("", True), ("", False), *((f"language.model.layers.{i}", True) for i in range(3))
    }  # fmt: skip
    block = [shape for name, shape in shapes.items() if ".layers.1." in name and "language" in name]
    held = found["language.model.layers.1", True]
    assert held.whole == held.whole_trained == sum(map(math.prod, block))
    assert held.local == sum(math.ceil(rows / 5) * math.prod(rest) for rows, *rest in block)
    encoder = found["", False]  # every process has all of it
    expected = sum(math.prod(s) for name, s in shapes.items() if name.startswith("vision."))
    assert encoder.whole == encoder.local == expected and encoder.local_trained == 0
    total = sum(unit.whole for unit in found.values())
    assert total == sum(map(math.prod, shapes.values()))


def test_one_process_holds_everything():
    model = random_model(0)
    [unit] = units(model)
    assert unit.whole == unit.local == sum(p.numel() for p in model.parameters())
    assert traffic([unit], 1, 1, 3, 2, 4) == Traffic(0, 0, 0)


class Collectives(TorchDispatchMode):
    """Bytes that a process would send in rings, by collective. They run, but move nothing."""

    def __init__(self, replicas: int, shard: int):
        super().__init__()
        self.sent = Counter()
        self.replicas, self.shard = replicas, shard

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function._schema.name
        if name == "c10d::_allgather_base_":  # whole, part
            self.sent["all_gather"] += arguments[1].nbytes * (self.shard - 1)
        elif name == "c10d::_reduce_scatter_base_":  # part, whole
            self.sent["reduce_scatter"] += arguments[0].nbytes * (self.shard - 1)
        elif name == "c10d::allreduce_":
            [part] = arguments[0]
            self.sent["all_reduce"] += part.nbytes * 2 * (self.replicas - 1) / self.replicas
        else:
            assert not name.startswith("c10d::"), name
        return function(*arguments, **(keywords or {}))


class Step(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, features):
        return ROW.loss(self.model, features)


@pytest.mark.parametrize("stage", ["instruct", "align"])
@pytest.mark.parametrize(("replicas", "size"), [(1, 4), (3, 2)])
def test_bytes_sent_are_those_of_the_collectives_of_a_real_step(stage, replicas, size):
    """Two rows on this process, in bf16 with gradients summed in float32."""
    model = random_model(3)
    choose_trainable(model, stage)
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    features = torch.randn(ROW.images, 4, 24)
    with fake_processes(replicas * size):
        mesh = make_mesh(size, CPU)
        step = Step(model)
        shard(step, model, mesh=mesh, mp_policy=policy)
        with Collectives(replicas, size) as seen:
            for last in (False, True):
                step.set_requires_gradient_sync(last)
                step(features).backward()
        predicted = traffic(units(step), replicas, size, rows=2, gathered_bytes=2, reduced_bytes=4)
    assert any(isinstance(module, FSDPModule) for module in step.modules())
    assert all(isinstance(p, DTensor) for p in model.language.parameters())
    assert dict(seen.sent) == pytest.approx(
        {name: sent for name, sent in vars(predicted).items() if sent}
    )


@pytest.mark.parametrize(("replicas", "size"), [(1, 4), (3, 2)])
def test_bytes_of_weights_that_are_gathered_in_8_bits(monkeypatch, replicas, size):
    """torchao's weights in the same step: a byte each, and one message for the scales of all."""
    pytest.importorskip("torchao")
    fake_libraries.pretend_gpu(monkeypatch)  # on a CPU it emulates
    model = random_model(7)  # all widths of its blocks are multiples of 16
    choose_trainable(model, "instruct")
    done = convert_to_float8(model, "torchao", CPU, "tensorwise", fp8_all_gather=True)
    assert len(done.converted) == 3 * 7  # layers, projections
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    features = torch.randn(ROW.images, model.config.tokens_per_image, model.config.visual_width)
    with fake_processes(replicas * size):
        step = Step(model)
        shard(step, model, mesh=make_mesh(size, CPU), mp_policy=policy)
        scale_weights(model)
        with Collectives(replicas, size) as seen, autocast("fp8", CPU):
            step(features).backward()
        found = units(step, [f"model.{name}" for name in done.converted])
        wide = traffic(units(step), replicas, size, 1, gathered_bytes=2, reduced_bytes=4)
        narrow = traffic(found, replicas, size, 1, gathered_bytes=2, reduced_bytes=4)
        two_bytes = TrainingConfig(precision="bf16")
        saved = [
            working_bytes(kind, two_bytes, 1)["gathered weights"] for kind in (units(step), found)
        ]
    weights = sum(model.get_submodule(name).weight.numel() for name in done.converted)
    assert dict(seen.sent) == pytest.approx({k: sent for k, sent in vars(narrow).items() if sent})
    assert wide.all_gather - narrow.all_gather == 2 * (size - 1) * weights / size
    assert saved[0] - saved[1] == 2 * weights / len(model.language.model.layers)


@pytest.mark.parametrize(
    ("world_size", "shard", "shape"), [(256, 8, (32, 8)), (8, 0, (1, 8)), (1, 0, (1, 1))]
)
def test_mesh_shapes(world_size, shard, shape):
    assert mesh_shape(world_size, shard) == shape


def test_a_group_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="parallel.shard: groups of 6 do not fit 256 processes"):
        mesh_shape(256, 6)
