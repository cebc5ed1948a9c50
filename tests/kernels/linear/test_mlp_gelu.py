import pytest
import torch
import torch.nn.functional as F

from metamorph_kernels import MLPGelu, mlp_gelu, reference
from tests.kernels.comparisons import assert_as_good_as_plain, value_and_gradients

NAMES = ("x", "w1", "b1", "w2", "b2")


def inputs(leading=(4,), sizes=(3, 5, 2), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    into, hidden, out = sizes
    shapes = [(*leading, into), (hidden, into), (hidden,), (out, hidden), (out,)]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    ]


@pytest.mark.parametrize("leading", [(), (1,), (4,), (2, 3), (0,)])
def test_equals_reference(leading):
    tensors = inputs(leading)
    ours, oracle = (value_and_gradients(f, *tensors) for f in (mlp_gelu, reference.mlp_gelu))
    torch.testing.assert_close(ours, oracle, rtol=1e-10, atol=1e-12)


def test_gradcheck():
    torch.autograd.gradcheck(mlp_gelu, [tensor.requires_grad_() for tensor in inputs()])


def test_gelu_is_exact_not_tanh():
    x = torch.linspace(-4, 4, 33, dtype=torch.float64)[:, None]
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    out = mlp_gelu(x, one, zero, one, zero)
    assert (out - F.gelu(x)).abs().max() < 1e-14
    assert (out - F.gelu(x, approximate="tanh")).abs().max() > 1e-4


def test_bfloat16_is_as_good_as_plain_bfloat16():
    def plain(x, w1, b1, w2, b2):
        return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)

    assert_as_good_as_plain(mlp_gelu, plain, *inputs((40,), (24, 48, 16)))


def test_compiled_equals_eager_also_under_autocast():
    compiled = torch.compile(mlp_gelu, fullgraph=True, backend="aot_eager")
    tensors = inputs(dtype=torch.float32)
    for on in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            eager, traced = (value_and_gradients(f, *tensors) for f in (mlp_gelu, compiled))
        torch.testing.assert_close(eager, traced, rtol=0, atol=0)
        assert eager[0].dtype == (torch.bfloat16 if on else torch.float32)


def test_module_has_the_keys_of_two_linear_layers():
    module = MLPGelu(3, 5, 2, dtype=torch.float64)
    keys = ["linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"]
    assert list(module.state_dict()) == keys
    x = inputs()[0]
    torch.testing.assert_close(module(x), reference.mlp_gelu(x, *module.state_dict().values()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.ones(4, 4)}, r"x: .*\[..., 3\], got \[4, 4\]"),
        ({"x": torch.ones(())}, r"x: .*got \[\]"),
        ({"w1": torch.ones(5)}, r"w1: .*\[F, I\].*got \[5\]"),
        ({"b1": torch.ones(4)}, r"b1: .*\[5\], got \[4\]"),
        ({"w2": torch.ones(2, 4)}, r"w2: .*\[any, 5\], got \[2, 4\]"),
        ({"b2": torch.ones(3)}, r"b2: .*\[2\], got \[3\]"),
        ({"b2": None}, "b2: expected a tensor, got NoneType"),
        ({"w2": torch.ones(2, 5).double()}, "w2: .*got torch.float64"),
        ({"b1": torch.ones(5, device="meta")}, "b1: expected device cpu.*got meta"),
        ({"impl": "cuda"}, "impl: mlp_gelu takes 'auto', 'triton', 'torch', got 'cuda'"),
    ],
)
def test_refuses(change, words):
    arguments = dict(zip(NAMES, inputs(dtype=torch.float32), strict=True)) | change
    with pytest.raises(ValueError, match=words):
        mlp_gelu(**arguments)
