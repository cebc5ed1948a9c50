"""Tensors that no op can take, in every place of every op: a ValueError that names the argument."""

from dataclasses import replace

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

from metamorph_kernels import pool_normalize
from tests.kernels.every_op.calls import CALLS

WRONG = {
    "None": lambda tensor: None,
    "list": lambda tensor: tensor.tolist(),
    "integers": lambda tensor: tensor.int(),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "quantised": lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    "0-d": lambda tensor: tensor.new_ones(()),
    "no columns": lambda tensor: tensor[..., :0],
    "sparse": lambda tensor: tensor.to_sparse(),
    "nested": lambda tensor: torch.nested.as_nested_tensor([tensor, tensor]),
    "jagged": lambda tensor: torch.nested.as_nested_tensor([tensor, tensor], layout=torch.jagged),
    "subclass": lambda tensor: TwoTensor(tensor, tensor),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.operation)
def test_the_argument_is_named(call, wrong):
    tensors = call.tensors(torch.float32)
    for name, tensor in tensors.items():
        if (name, wrong) == ("bias", "None"):  # it may be left out
            continue
        with pytest.raises(ValueError) as caught:
            call(**(tensors | {name: WRONG[wrong](tensor)}))
        named = str(caught.value).partition(":")[0]
        # Where sizes differ, that of the other argument may be the one that is told.
        expected = set(tensors) if wrong == "no columns" else {name}
        assert named in expected, caught.value


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.operation)
def test_strides_do_not_matter(call):
    tensors = call.tensors(torch.float32)
    expected = call(**tensors)
    for name, tensor in tensors.items():
        apart = torch.stack([tensor, tensor], -1)[..., 0]
        torch.testing.assert_close(call(**(tensors | {name: apart})), expected)


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf"), "1", True])
@pytest.mark.parametrize("call", [call for call in CALLS if "attention" in call.operation])
def test_a_scale_is_a_positive_number(call, scale):
    scaled = replace(call, rest=lambda: call.rest() | {"scale": scale})
    with pytest.raises(ValueError, match="^scale: expected a positive number"):
        scaled(**call.tensors(torch.float32))


@pytest.mark.parametrize("dimension", [0, 1, 2])
def test_pooling_compiles_with_symbolic_sizes(dimension):
    compiled = torch.compile(pool_normalize, fullgraph=True, backend="aot_eager")
    for batch, side, columns, grid in ((2, 4, 5, 2), (3, 5, 7, 3), (4, 27, 8, 8)):
        features = torch.randn(batch, side * side, columns)
        if grid == 2:
            torch._dynamo.mark_dynamic(features, dimension)
        torch.testing.assert_close(compiled(features, grid), pool_normalize(features, grid))


@pytest.mark.parametrize("call", [call for call in CALLS if call.operation != "interval_attention"])
def test_every_op_compiles_with_symbolic_sizes(call):
    if call.operation == "interval_attention_fp8":
        pytest.skip("in PyTorch a graph is of its document lengths")
    tensors = call.tensors(torch.float32)
    rest = call.rest()  # made outside the graph
    prepared = replace(call, rest=lambda: rest)

    def operation(tensors):
        return prepared(**tensors)

    torch._dynamo.reset()  # it counts the graphs of all ops together, for they are of one function
    compiled = torch.compile(operation, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled(tensors), operation(tensors))
