import itertools

import pytest
import torch
import torch.nn.functional as F

from metamorph_kernels import mlp_gelu, reference
from metamorph_kernels.linear import mlp_triton
from tests.kernels.comparisons import Record, kept_for_backward, value_and_gradients
from tests.kernels.conftest import INTERPRETED

DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# N, I, F, O: widths of whole 16 bytes and odd ones.
SHAPES = [
    (1, 8, 8, 8),
    (7, 32, 96, 24),
    (33, 24, 40, 16),
    (18, 104, 200, 8),
    (1, 3, 1, 1),
    (21, 5, 35, 7),
]
if not INTERPRETED:
    SHAPES += [(513, 1152, 4096, 4096), (64, 1152, 4096, 4096), (200, 4096, 4096, 1152)]

pytestmark = pytest.mark.usefixtures("poisoned", "tiles")


@pytest.fixture
def tiles(monkeypatch):
    """Small ones, so that there are many: of rows and columns, and of steps."""
    if INTERPRETED:
        monkeypatch.setattr(mlp_triton, "BLOCK", 128)
        monkeypatch.setattr(mlp_triton, "TILE", {"ROWS": 4, "COLUMNS": 32, "STEPS": 2})


def inputs(rows, into, hidden, out, dtype, device, seed=0):
    """x [N, I], w1 [F, I], b1 [F], w2 [O, F], b2 [O]."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(rows, into), (hidden, into), (hidden,), (out, hidden), (out,)]
    x, w1, b1, w2, b2 = (torch.randn(shape, generator=generator) for shape in shapes)
    tensors = (x, w1 / into**0.5, b1, w2 / hidden**0.5, b2)
    return [tensor.to(device, dtype) for tensor in tensors]


def ours(*tensors, **options):
    return mlp_gelu(*tensors, impl="triton", **options)


def assert_near(actual, truth, dtype):
    for value, true in zip(actual, truth, strict=True):
        size = max(1.0, true.abs().max().item()) if true.numel() else 1.0
        torch.testing.assert_close(value.double(), true, rtol=0, atol=TOLERANCE[dtype] * size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients_against_float64(device, shape, dtype):
    tensors = inputs(*shape, dtype, device)
    actual = value_and_gradients(ours, *tensors)
    truth = value_and_gradients(reference.mlp_gelu, *(tensor.double() for tensor in tensors))
    assert all(value.dtype == dtype for value in actual)
    assert_near(actual, truth, dtype)


def test_rounds_where_pytorch_does(device):
    """State, activation and both their gradients once each, so the errors are of one size."""

    def plain(x, w1, b1, w2, b2):
        return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)

    tensors = inputs(40, 24, 48, 16, torch.float16, device)
    truth = value_and_gradients(plain, *(tensor.double() for tensor in tensors))
    results = (value_and_gradients(function, *tensors) for function in (ours, plain))
    for our, theirs, true in zip(*results, truth, strict=True):
        assert (our.double() - true).norm() <= 1.2 * (theirs.double() - true).norm()


@pytest.mark.skipif(not INTERPRETED, reason="a GPU takes these tiles by itself")
def test_shipped_tiles(device, monkeypatch):
    monkeypatch.undo()
    tensors = inputs(70, 16, 264, 24, torch.float16, device)
    truth = value_and_gradients(reference.mlp_gelu, *(tensor.double() for tensor in tensors))
    assert_near(value_and_gradients(ours, *tensors), truth, torch.float16)


@pytest.mark.parametrize(
    "sizes", [(0, 8, 8, 8), (3, 0, 8, 8), (3, 8, 0, 8), (3, 8, 8, 0), (0, 0, 0, 0)], ids=str
)
def test_sizes_of_zero(device, sizes):
    rows, into, hidden, out = sizes
    x, w1, b1, w2, b2 = inputs(*map(lambda size: max(size, 1), sizes), torch.float32, device)
    tensors = (x[:rows, :into], w1[:hidden, :into], b1[:hidden], w2[:out, :hidden], b2[:out])
    actual = value_and_gradients(ours, *tensors)
    truth = value_and_gradients(reference.mlp_gelu, *(tensor.double() for tensor in tensors))
    assert_near(actual, truth, torch.float32)


@pytest.mark.parametrize("leading", [(), (0,), (2, 3), (0, 4)])
def test_leading_dimensions(device, leading):
    x, *weights = inputs(24, 16, 32, 8, DTYPES[0], device)
    x = x.flatten()[: 16 * torch.Size(leading).numel()].view(*leading, 16)
    actual = value_and_gradients(ours, x, *weights)
    truth = value_and_gradients(reference.mlp_gelu, *(t.double() for t in (x, *weights)))
    assert actual[0].shape == (*leading, 8) and actual[1].shape == x.shape
    assert_near(actual, truth, DTYPES[0])


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_frozen_takes_no_product_and_keeps_nothing(device, keep):
    expected = value_and_gradients(ours, *inputs(9, 16, 32, 8, DTYPES[0], device))
    for wanted in itertools.product((True, False), repeat=5):
        if not any(wanted):
            continue
        tensors = inputs(9, 16, 32, 8, DTYPES[0], device)
        for tensor, wants in zip(tensors, wanted, strict=True):
            tensor.requires_grad_(wants)
        with kept_for_backward() as tensors_kept:
            out = ours(*tensors, keep_activation=keep)
        before_gelu = any(wanted[:3])
        kept = sum(tensor.numel() for tensor in tensors_kept[3:])  # beside x, w1 and w2
        assert kept == (before_gelu + (wanted[3] and (keep or not before_gelu))) * 9 * 32
        generator = torch.Generator().manual_seed(0)
        cotangent = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
        with Record() as record:
            out.backward(cotangent)
        assert record.products == wanted[0] + wanted[1] + wanted[3]
        for tensor, gradient, wants in zip(tensors, expected[1:], wanted, strict=True):
            assert torch.equal(tensor.grad, gradient) if wants else tensor.grad is None
        assert torch.equal(out, expected[0])


def test_without_gradients_nothing_is_kept(device):
    tensors = [tensor.requires_grad_() for tensor in inputs(9, 16, 32, 8, DTYPES[0], device)]
    expected = ours(*tensors)
    with torch.no_grad(), Record() as record:
        assert torch.equal(ours(*tensors), expected)
    assert record.elements == 9 * 32  # the GELU's result alone, not what it was taken of


def test_strided_inputs_give_the_same_and_two_runs_the_same_bits(device):
    x, w1, b1, w2, b2 = inputs(21, 32, 48, 16, DTYPES[1], device)
    wide = torch.cat([x, x], 1)[:, 32:]
    turned = w1.t().contiguous().t()
    spread = torch.stack([b1, b1], 1)[:, 0]
    first, second, strided = (
        value_and_gradients(ours, *tensors)
        for tensors in ((x, w1, b1, w2, b2), (x, w1, b1, w2, b2), (wide, turned, spread, w2, b2))
    )
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert_near(strided, [value.double() for value in first], DTYPES[1])  # of other products


def test_a_gradient_without_memory_of_its_own(device):
    """Such as that of a sum: one number for all, expanded."""
    tensors = [tensor.requires_grad_() for tensor in inputs(9, 16, 32, 8, torch.float32, device)]
    ours(*tensors).sum().backward()
    expected = torch.autograd.grad(reference.mlp_gelu(*tensors).sum(), tensors)
    assert_near([tensor.grad for tensor in tensors], [e.double() for e in expected], torch.float32)


def test_two_backwards_through_one_forward(device):
    """The kernel of the backward writes over its own product, not over what was kept."""
    tensors = [tensor.requires_grad_() for tensor in inputs(9, 16, 32, 8, DTYPES[1], device)]
    for keep in (True, False):
        out = ours(*tensors, keep_activation=keep)
        first, second = (
            torch.autograd.grad(out, tensors, out.detach(), retain_graph=True) for _ in range(2)
        )
        assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_what_is_no_number_stays_in_its_row(device):
    x, *weights = inputs(21, 16, 40, 8, DTYPES[1], device)
    clean = value_and_gradients(ours, x, *weights)
    bad = torch.arange(21, device=device).eq(11)
    x[bad] = torch.nan
    out, x_gradient, w1_gradient, b1_gradient, *_ = value_and_gradients(ours, x, *weights)
    for actual, expected in zip((out, x_gradient), clean[:2], strict=True):
        assert actual[bad].isnan().all()
        assert torch.equal(actual[~bad], expected[~bad])
    assert w1_gradient.isnan().all() and b1_gradient.isnan().all()  # sums over all rows


def test_the_gradient_of_the_bias_adds_up_in_float32(device, monkeypatch):
    """Of 2049 ones, whose sum in float16 would stop at 2048."""
    monkeypatch.undo()
    state, one = torch.full((2049, 1), 8.0).half().to(device), torch.ones(1, 1).half().to(device)
    ones = torch.ones_like(state)
    _, _, sums = torch.ops.metamorph_kernels.linear_gelu_backward(ones, one, state, False, True)
    assert sums.dtype == torch.float32 and sums.tolist() == [2049]


def test_the_backward_keeps_its_dtypes_under_autocast(device):
    """The kernel takes numbers of one dtype, whatever is cast meanwhile."""
    tensors = [tensor.requires_grad_() for tensor in inputs(9, 16, 32, 8, torch.float32, device)]
    out = ours(*tensors)
    expected = torch.autograd.grad(out, tensors, out.detach(), retain_graph=True)
    with torch.autocast(device, torch.bfloat16):
        actual = torch.autograd.grad(out, tensors, out.detach())
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


def test_autocast(device):
    tensors = inputs(9, 16, 32, 8, torch.float32, device)
    half = value_and_gradients(ours, *(tensor.bfloat16() for tensor in tensors))
    with torch.autocast(device, torch.bfloat16):
        mixed = value_and_gradients(ours, *tensors)
    assert mixed[0].dtype == torch.bfloat16 and mixed[1].dtype == torch.float32
    for one, other in zip(mixed, half, strict=True):
        assert torch.equal(one.bfloat16(), other)


def test_large_values_pass_or_vanish(device):
    """Where the GELU is the identity or zero, nothing overflows on the way."""
    x = torch.tensor([[-60000.0, 60000.0, -40.0, 40.0, -1e-4, 1e-4, 0.0, 3.0]], device=device)
    x = x.half()
    one, zero = torch.eye(8, device=device).half(), torch.zeros(8, device=device).half()
    out, gradient, *_ = value_and_gradients(ours, x, one, zero, one, zero)
    assert out[0, :4].tolist() == [0, 60000, 0, 40] and out.isfinite().all()
    assert gradient.isfinite().all() and gradient[0, 0] == gradient[0, 2] == 0


def test_operator_checks(device):
    x, w1, b1, w2, _ = inputs(5, 16, 32, 8, DTYPES[1], device)
    operators = torch.ops.metamorph_kernels
    state = x @ w1.t()
    for keep in (True, False):
        torch.library.opcheck(operators.linear_gelu.default, (x, w1, b1, keep))
    for wants in ((True, True), (False, True), (False, False)):
        torch.library.opcheck(
            operators.linear_gelu_backward.default, (x[:, :8].contiguous(), w2, state, *wants)
        )


def test_compiled_equals_eager(device):
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    tensors = inputs(9, 16, 32, 8, DTYPES[0], device)
    eager, traced = (value_and_gradients(function, *tensors) for function in (ours, compiled))
    assert all(torch.equal(one, other) for one, other in zip(eager, traced, strict=True))


@pytest.mark.parametrize(
    ("numbers", "element_size", "vector"),
    [(8, 2, 8), (4096, 2, 8), (12, 2, 1), (35, 2, 1), (12, 4, 4), (8, 4, 4), (6, 4, 1), (1, 2, 1)],
)
def test_whole_16_bytes_at_once_where_they_divide(numbers, element_size, vector):
    assert mlp_triton.vector_of(numbers, element_size) == vector


def test_refuses(device):
    words = "impl: mlp_gelu cannot run in Triton here: float64 runs in PyTorch only"
    with pytest.raises(ValueError, match=words):
        ours(*inputs(3, 16, 16, 16, torch.float64, device))
