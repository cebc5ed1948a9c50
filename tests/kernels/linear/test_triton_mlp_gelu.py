import itertools

import pytest
import torch

from metamorph_kernels import mlp_gelu, reference
from metamorph_kernels.linear import mlp_triton
from tests.kernels.comparisons import Record, kept_for_backward, value_and_gradients
from tests.kernels.conftest import INTERPRETED

DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SHAPES = [(1, 8, 8, 8), (7, 32, 96, 24), (33, 24, 40, 16), (18, 104, 200, 8)]  # N, I, F, O
if not INTERPRETED:
    SHAPES += [(513, 1152, 4096, 4096), (64, 1152, 4096, 4096), (200, 4096, 4096, 1152)]

pytestmark = pytest.mark.usefixtures("poisoned", "tiles")


@pytest.fixture
def tiles(monkeypatch):
    """Small ones, one with strips of a block beside another without."""
    if INTERPRETED:
        small = [mlp_triton.Tiles(16, width, 16, num_warps=4, num_stages=1) for width in (128, 32)]
        monkeypatch.setattr(mlp_triton, "TILES", small)
        monkeypatch.setattr(mlp_triton, "HOPPER_SMS", 4)


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


def test_wide_blocks_take_strips():
    """Some of the shapes above have wide blocks, and some have not."""
    chosen = {mlp_triton.choose(rows, hidden, 2).block_n for rows, _, hidden, _ in SHAPES}
    assert len(chosen) > 1


@pytest.mark.skipif(not INTERPRETED, reason="a GPU takes these tiles by itself")
def test_four_strips_in_two_parts(device, monkeypatch):
    wide = mlp_triton.Tiles(16, 256, 32, num_warps=8, num_stages=1)
    monkeypatch.setattr(mlp_triton, "TILES", [wide])
    tensors = inputs(19, 40, 264, 24, torch.float16, device)
    truth = value_and_gradients(reference.mlp_gelu, *(tensor.double() for tensor in tensors))
    assert_near(value_and_gradients(ours, *tensors), truth, torch.float16)


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
    turned = w1.t().contiguous().t()  # its rows are not dense: copied
    first, second, strided = (
        value_and_gradients(ours, *tensors)
        for tensors in ((x, w1, b1, w2, b2), (x, w1, b1, w2, b2), (wide, turned, b1, w2, b2))
    )
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert_near(strided, [value.double() for value in first], DTYPES[1])  # of other products


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
        torch.library.opcheck(operators.linear_gelu_rows.default, (x, w1, b1, keep))
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
    ("rows", "features", "block"),
    [(1, 4096, (64, 32)), (64, 4096, (64, 32)), (256, 4096, (64, 128)), (512, 4096, (128, 128)),
     (1024, 4096, (128, 256)), (16384, 4096, (128, 256)), (128, 4096, (64, 64)),
     (0, 4096, (64, 32)), (896, 4736, (128, 128))],  # 133 of 128 x 256: a wave of one
)  # fmt: skip
def test_few_rows_take_small_tiles(monkeypatch, rows, features, block):
    monkeypatch.undo()
    tiles = mlp_triton.choose(rows, features, 2)
    assert (tiles.block_m, tiles.block_n) == block


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        ((3, 16, 16, 16), torch.float64, "float64 runs in PyTorch only"),
        ((3, 9, 16, 16), torch.float16, "rows of whole 16 bytes only, got 18 bytes along I"),
        ((3, 16, 33, 16), torch.float16, "rows of whole 16 bytes only, got 66 bytes along F"),
        ((3, 16, 16, 1), torch.float32, "rows of whole 16 bytes only, got 4 bytes along O"),
    ],
)
def test_refuses(device, shape, dtype, words):
    with pytest.raises(ValueError, match=f"impl: mlp_gelu cannot run in Triton here: {words}"):
        ours(*inputs(*shape, dtype, device))
