import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from metamorph_kernels import cosine_loss, reference
from metamorph_kernels.losses import cosine_triton
from tests.kernels.comparisons import Record, kept_for_backward
from tests.kernels.conftest import INTERPRETED

DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # two roundings
OPERATORS = torch.ops.metamorph_kernels
SHAPES = [(0, 96), (1, 1), (7, 1), (513, 1), (513, 33), (513, 96), (7, 128), (5, 200), (7, 512)]
SHAPES += [(1, 1000), (7, 1000), (0, 1152), (1, 1152), (7, 1152), (65, 1152), (3, 4096), (2, 8192)]

pytestmark = pytest.mark.usefixtures("poisoned")


def ours(prediction, target, **options):
    return cosine_loss(prediction, target, impl="triton", **options)


def plain(prediction, target, **options):
    return cosine_loss(prediction, target, impl="torch", **options)


def normal(*shape, dtype=DTYPES[0], device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def value_and_gradient(function, prediction, target, cotangent=None, **options):
    """The loss, and the gradient of the prediction under a fixed random cotangent."""
    leaf = prediction.detach().requires_grad_()
    loss = function(leaf, target, **options)
    if cotangent is None:
        cotangent = normal(*loss.shape, dtype=torch.float64, seed=9)
    loss.backward(cotangent.to(loss))
    return loss.detach(), leaf.grad


def assert_near_float64(prediction, target, **options):
    loss, gradient = value_and_gradient(ours, prediction, target, **options)
    true_loss, true_gradient = value_and_gradient(
        reference.cosine_loss, prediction.double(), target.double(), **options
    )
    assert loss.dtype == torch.float32 and gradient.dtype == prediction.dtype
    torch.testing.assert_close(loss.double(), true_loss, rtol=3e-6, atol=3e-6)
    length = prediction.double().norm(dim=1, keepdim=True)  # the gradient's scale is 1 / length
    torch.testing.assert_close(
        gradient * length, true_gradient * length, rtol=TOLERANCE[prediction.dtype], atol=3e-6
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_against_float64(device, dtype, shape):
    prediction, target = (normal(*shape, dtype=dtype, device=device, seed=s) for s in (0, 1))
    assert_near_float64(prediction, target, reduction="none")


def test_the_shapes_above_reach_every_class_of_widths():
    assert {cosine_triton.row_layout(columns)[1]["BLOCK"] for _, columns in SHAPES} == set(
        cosine_triton.TILES
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions_and_dtypes_that_differ(device, reduction):
    prediction = normal(9, 33, dtype=torch.float16, device=device)
    for dtype in (torch.float16, torch.float32, torch.float64):
        target = normal(9, 33, dtype=dtype, device=device, seed=1)
        assert_near_float64(prediction, target, reduction=reduction)


@pytest.mark.usefixtures("either_maximum")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, of what overflows
@pytest.mark.parametrize("width", [3, 1152])
@pytest.mark.parametrize("scaled", ["prediction", "target", "both"])
def test_rows_of_every_size_mean_what_they_mean_in_pytorch(device, width, scaled):
    sizes = [0.0, 1e-38, 1e-30, 3e-20, 1e-17, 1e-6, 1e4, 1e15, 1e18, 1e19, 1e30, 3e38]
    sizes = torch.tensor([*sizes, torch.inf, torch.nan], dtype=torch.float64, device=device)
    prediction, target = (
        normal(len(sizes), width, dtype=torch.float64, device=device, seed=seed) for seed in (0, 1)
    )
    if scaled != "target":
        prediction *= sizes[:, None]
    if scaled != "prediction":
        target *= sizes[:, None]
    cotangent = torch.ones(len(sizes))
    results, expected = (
        value_and_gradient(
            function, prediction.to(DTYPES[0]), target.to(DTYPES[0]), cotangent, reduction="none"
        )
        for function in (ours, plain)
    )
    close = {"rtol": 1e-2, "atol": 1e-4, "equal_nan": True}  # 1e-19 squared has few digits
    torch.testing.assert_close(results[0], expected[0], **close)
    largest = expected[1].double().abs().amax(1, keepdim=True)
    largest = largest.where(largest > 0, 1)
    torch.testing.assert_close(results[1] / largest, expected[1] / largest, **close)
    zero = results[0][:3]
    assert torch.equal(zero, torch.ones_like(zero)) and results[1][:3].eq(0).all()
    assert results[0][:11].isfinite().all() and results[1][:11].isfinite().all()


@pytest.mark.parametrize("size", [1e-5, 1e4])
def test_a_float16_gradient_is_rounded_only_after_the_cotangent(device, size):
    """For a cotangent of ones it is infinite or zero here."""
    prediction, target = (normal(4, 64, dtype=torch.float16, device=device, seed=s) for s in (0, 1))
    prediction = (prediction.double() * size).half()
    cotangent = torch.full((4,), size * 10)
    results, expected = (
        value_and_gradient(function, prediction, target, cotangent, reduction="none")
        for function in (ours, plain)
    )
    assert expected[1].abs().amin(1).gt(0).all() and expected[1].isfinite().all()
    torch.testing.assert_close(results, expected, rtol=2e-3, atol=1e-3)


INDEX = [2, -1, 0, 2, -100, 2, 1, 0, -1, 1, 2]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("width", [33, 1152])
def test_index_with_duplicates_and_ignored_rows(device, width, reduction):
    prediction = normal(len(INDEX), width, device=device)
    target = normal(3, width, device=device, seed=1)
    index = torch.tensor(INDEX, device=device)
    assert_near_float64(prediction, target, target_index=index, reduction=reduction)
    spread = torch.stack([index, index * 0 + 7], 1)[:, 0]
    assert torch.equal(
        ours(prediction, target, target_index=spread), ours(prediction, target, target_index=index)
    )


def test_ignored_rows_are_not_read(device):
    prediction = normal(4, 33, device=device)
    target = normal(2, 33, device=device, seed=1)
    prediction[1], target[0] = torch.nan, torch.nan
    index = torch.tensor([1, -1, 1, -7], device=device)
    losses, gradient = value_and_gradient(
        ours, prediction, target, target_index=index, reduction="none"
    )
    assert losses[1::2].eq(0).all() and gradient[1::2].eq(0).all()
    assert losses[::2].gt(0).all() and gradient.isfinite().all()


@pytest.mark.parametrize("targets", [0, 2])
@pytest.mark.parametrize("rows", [0, 5])
def test_no_counted_row_gives_exactly_zero(device, rows, targets):
    prediction = normal(rows, 33, device=device)
    target = normal(targets, 33, device=device, seed=1)
    index = torch.full((rows,), -1, device=device)
    for reduction in ("mean", "sum"):
        loss, gradient = value_and_gradient(
            ours, prediction, target, target_index=index, reduction=reduction
        )
        assert loss.item() == 0 and torch.equal(gradient, torch.zeros_like(prediction))


def test_an_index_out_of_range_reads_nothing_and_shows(device):
    index = torch.tensor([1, 2, 2**40, 0], device=device)
    tensors = normal(4, 33, device=device), normal(2, 33, device=device, seed=1)
    losses, gradient = OPERATORS.cosine_rows(*tensors, index, True, True)
    assert losses.isnan().tolist() == [False, True, True, False]
    assert torch.equal(gradient.isnan(), losses.isnan()[:, None].expand(4, 33))


def test_a_frozen_prediction_writes_no_gradient(device):
    prediction, target = normal(8, 96, device=device), normal(8, 96, device=device, seed=1)
    trained = prediction.clone().requires_grad_()
    expected = ours(trained, target, reduction="none")
    with Record() as whole:
        ours(trained, target, reduction="none")
    assert whole.elements == 8 * 96 and expected.requires_grad
    with Record() as frozen:
        losses = ours(prediction, target.requires_grad_(), reduction="none")
    with Record() as without, torch.no_grad():
        ours(trained, target, reduction="none")
    assert torch.equal(losses, expected.detach()) and not losses.requires_grad
    # Nothing that an operator returned is larger than the losses, but a detached target.
    assert frozen.elements <= 8 * 96 and without.elements <= 8 * 96
    assert OPERATORS.cosine_rows(prediction, target.detach(), None, False, False)[1].shape == (0,)


def test_strided_rows(device):
    wide = normal(9, 3 * 40, device=device)
    target = normal(9, 40, device=device, seed=1)
    expected = value_and_gradient(ours, wide[:, 40:80].contiguous(), target)
    views = {
        "slice": (wide[:, 40:80], target),
        "unaligned target": (wide[:, 40:80].contiguous(), torch.cat([target[:, :1], target], 1)),
        "turned": (wide[:, 40:80].t().contiguous().t(), target.t().contiguous().t()),
    }
    for name, (prediction, other) in views.items():
        other = other[:, -40:]
        loss, gradient = value_and_gradient(ours, prediction, other)
        assert torch.equal(loss, expected[0]) and torch.equal(gradient, expected[1]), name
    one = target[:1].expand(9, 40)
    assert torch.equal(ours(wide[:, :40], one), ours(wide[:, :40].contiguous(), one.contiguous()))


def test_rows_further_apart_than_an_int32_counts(device, monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    spread = torch.empty(2**31 + 64, dtype=torch.float16, device=device)
    spread = spread.as_strided((3, 33), (2**30, 1))
    prediction, target = (normal(3, 33, dtype=torch.float16, device=device, seed=s) for s in (0, 1))
    expected = ours(prediction, target, reduction="none")
    spread.copy_(prediction)
    assert torch.equal(ours(spread, target, reduction="none"), expected)
    spread.copy_(target)
    assert torch.equal(ours(prediction, spread, reduction="none"), expected)


@pytest.mark.skipif(INTERPRETED, reason="needs 20 GB")
def test_gradients_of_more_numbers_than_an_int32_counts():
    prediction = torch.zeros(2**18 + 8, 8192, dtype=torch.bfloat16, device="cuda")
    target = torch.ones_like(prediction[:1]).expand_as(prediction)
    prediction[-8:] = normal(8, 8192, device="cuda")
    _, gradient = value_and_gradient(ours, prediction, target, reduction="sum")
    _, expected = value_and_gradient(ours, prediction[-8:], target[-8:], reduction="sum")
    assert torch.equal(gradient[-8:], expected) and not gradient[:-8].any()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("factor", [1.0, -0.375, 0.0])
def test_backward_multiplies_in_place(device, reduction, factor):
    dtype = torch.float32 if INTERPRETED else torch.bfloat16
    for rows, width in ((5, 33), (0, 33), (17, 1152)):  # one program, none, several
        prediction = normal(rows, width, dtype=dtype, device=device).requires_grad_()
        target = normal(rows, width, dtype=dtype, device=device, seed=1)
        with kept_for_backward() as kept:
            loss = ours(prediction, target, reduction=reduction)
        unit = kept.pop()
        expected, place = (unit.float() * factor).to(dtype), unit.data_ptr()
        del unit
        loss.backward(loss.new_tensor(factor))
        assert torch.equal(prediction.grad, expected) and prediction.grad.data_ptr() == place


def test_a_factor_of_one_touches_nothing(device):
    """Not even what no float32 arithmetic would keep as it is."""
    bits = torch.full((9000,), 0x7F80_0001, dtype=torch.int32, device=device)  # signalling NaNs
    values = bits.clone().view(torch.float32)
    OPERATORS.scale_in_place(values, torch.ones((), device=device))
    assert torch.equal(values.view(torch.int32), bits)


@pytest.mark.parametrize("size", [0, 1, 8191, 8192, 9000])
def test_scaling_ends_with_the_values(device, size):
    memory = torch.ones(10_000, device=device)
    OPERATORS.scale_in_place(memory[:size], torch.full((), 3.0, device=device))
    assert memory[:size].eq(3).all() and memory[size:].eq(1).all()


def test_a_second_backward_is_refused_or_gives_the_same(device):
    prediction = normal(5, 96, dtype=torch.float32, device=device).requires_grad_()
    target = normal(5, 96, device=device, seed=1)
    losses = ours(prediction, target, reduction="none")
    first, second, doubled = (
        torch.autograd.grad(losses.mean(), prediction, factor, retain_graph=True)[0]
        for factor in map(losses.new_tensor, (1.0, 1.0, 2.0))
    )
    assert torch.equal(first, second) and torch.equal(2 * first, doubled)

    mean = ours(prediction, target)
    mean.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward .* needs reduction='none' or impl="):
        mean.backward()


def test_operator_checks(device):
    prediction, target = normal(5, 33, device=device), normal(3, 33, device=device, seed=1)
    index = torch.tensor([2, -1, 0, 1, 2], device=device)
    rows = OPERATORS.cosine_rows.default
    torch.library.opcheck(rows, (prediction, target, index, True, True))
    torch.library.opcheck(rows, (prediction[:3].half(), target, None, True, False))
    torch.library.opcheck(rows, (prediction[:3], target, None, False, False))
    factors = normal(5, dtype=torch.float32, device=device)
    torch.library.opcheck(OPERATORS.scale_rows.default, (prediction, factors, torch.float16))
    torch.library.opcheck(OPERATORS.scale_in_place.default, (prediction, factors[0]))


@pytest.mark.parametrize("indexed", [True, False])
def test_compiles_whole_and_equals_eager(device, indexed):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ours, fullgraph=True, backend=counter)
    index = {"target_index": torch.tensor([3, -1, 0, 3, 1], device=device)} if indexed else {}
    for seed in (0, 2):
        tensors = [normal(5, 96, device=device, seed=seed + add) for add in (0, 1)]
        eager, traced = (
            value_and_gradient(function, *tensors, **index) for function in (ours, compiled)
        )
        assert torch.equal(eager[0], traced[0]) and torch.equal(eager[1], traced[1])
        assert torch.equal(compiled(*tensors, **index), eager[0])
    assert counter.frame_count == 2  # with gradient and without


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ((torch.ones(2, 3).double(), torch.ones(2, 3)), "float64 runs in PyTorch only"),
        ((torch.ones(2, 8193), torch.ones(2, 8193)), "rows of at most 8192 only, got 8193"),
    ],
)
def test_refuses(device, tensors, words):
    with pytest.raises(ValueError, match=f"impl: cosine_loss cannot run in Triton here: {words}"):
        ours(*(tensor.to(device) for tensor in tensors))
