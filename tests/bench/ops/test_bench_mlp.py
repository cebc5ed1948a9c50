import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from bench.harness.providers import Provider
from bench.harness.trials import forward, largest_error
from bench.ops import mlp

CPU = torch.device("cpu")
TINY = mlp.Case(70, into=16, hidden=32, out=24, dtype=torch.float32)
pytestmark = pytest.mark.usefixtures("few_repeats")


def test_an_entry_verifies_and_times_all_that_runs_here():
    results = TINY.run(CPU)
    for operation in (mlp.FORWARD, mlp.BACKWARD):
        found = {line.provider: line for line in results if line.operation == operation}
        here = {"ours torch", "eager", "ours torch float8", mlp.BARE_PRODUCTS}
        assert {name for name, line in found.items() if line.status == "ok"} == here
        absent = {"ours triton", "ours triton, activation kept", "ours triton float8"}
        assert {n for n, line in found.items() if line.status == "absent"} == absent | {
            "torch.compile",
            mlp.QUACK.name,
        }
        assert found["ours torch float8"].error > 1e3 * found["eager"].error
        assert (found["ours torch float8"].unit, found["eager"].unit) == ("TFLOP/s fp8", "TFLOP/s")


def test_a_tanh_for_the_erf_is_no_provider_of_ours(monkeypatch):
    def tanh(x, w1, b1, w2, b2, _):
        return F.linear(F.gelu(F.linear(x, w1, b1), approximate="tanh"), w2, b2)

    monkeypatch.setattr(mlp, "PROVIDERS", [Provider("tanh", tanh)])
    lines = [line for line in TINY.run(CPU) if line.provider == "tanh"]
    assert [line.status for line in lines] == ["failed", "failed"]
    assert all(line.reason.startswith("wrong: error") for line in lines)


def test_work_is_counted_by_what_has_to_be_done():
    assert TINY.flops == 2 * 70 * (16 * 32 + 32 * 24)
    x, w1, w2, gradient = (torch.ones(shape) for shape in ((7, 3), (5, 3), (2, 5), (7, 2)))
    shapes = [product.shape for product in mlp.all_products(x, w1, w2, gradient)]
    assert shapes == [(7, 2), (7, 3), (5, 3), (2, 5)]


def test_quack_gets_what_its_function_takes(monkeypatch):
    def mlp_func(x, weight1, weight2, activation):
        assert activation == "gelu_tanh_approx"
        return mlp.tanh_mlp(x, weight1, weight2)

    for name in ("quack", "quack.mlp"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["quack.mlp"].mlp_func = mlp_func
    inputs = mlp.without_biases(TINY.inputs(CPU, seed=0))
    for call in (forward, mlp.forward_and_gradients):
        exact = call(mlp.of_leaves(mlp.tanh_mlp), inputs.double())
        assert largest_error(call(mlp.QUACK.method, inputs), exact) < 1e-5
