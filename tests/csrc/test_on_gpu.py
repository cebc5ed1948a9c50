"""The CUDA ops on a GPU, against float64. Needs torch and pytest alone."""

import pytest
import torch
from row_truth import (
    DTYPES,
    assert_cosine_rows,
    assert_pooled,
    assert_quantised,
    embedded,
    random_rows,
)

from metamorph_kernels import cosine_loss, cuda_library, pool_normalize
from metamorph_kernels.attention.fp8 import quantise_heads
from metamorph_kernels.cuda_library import (
    cosine_rows,
    pool_normalize_rows,
    quantise_rows,
    scale_in_place,
)

ABSENCE = (
    cuda_library.cuda_absence("cuda") if torch.cuda.is_available() else "torch sees no CUDA device"
)
pytestmark = pytest.mark.skipif(ABSENCE is not None, reason=str(ABSENCE))

COLUMNS = [1, 33, 96, 1000, 1152, 1153, 1280, 1288, 4096, 20480, 20488]
ROWS = [0, 1, 7, 513]


def gpu_rows(rows, columns, dtype, seed=0):
    return random_rows(rows, columns, dtype, seed).cuda()


def same_bits(first, second):
    return all(
        torch.equal(a.view(torch.uint8), b.view(torch.uint8))
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cosine(dtype, columns):
    for rows in ROWS:
        prediction = gpu_rows(rows, columns, dtype)
        target = gpu_rows(rows, columns, dtype, seed=1).flip(0)
        losses, gradient = cosine_rows(prediction, target, with_gradient=True)
        assert_cosine_rows(losses, gradient, prediction, target)
        again = cosine_rows(prediction, target, with_gradient=True)
        assert same_bits((losses, gradient), again)
        alone, none = cosine_rows(prediction, target, with_gradient=False)
        assert same_bits([losses], [alone]) and none.shape == (0,)


@pytest.mark.parametrize("target_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cosine_by_index(dtype, target_dtype):
    index = torch.randint(-40, 300, (513,), generator=torch.Generator().manual_seed(0)).cuda()
    index[0] = 2**40
    for columns in (33, 1152, 2048):
        prediction = gpu_rows(513, columns, dtype)
        target = gpu_rows(290, columns, target_dtype, seed=1)
        for mean in (False, True):
            results = cosine_rows(prediction, target, index, with_gradient=True, mean=mean)
            assert_cosine_rows(*results, prediction, target, index, mean=mean)


@pytest.mark.parametrize("columns", [33, 1152, 2048])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cosine_of_a_mean(dtype, columns):
    for rows in ROWS:
        prediction, target = (gpu_rows(rows, columns, dtype, seed) for seed in range(2))
        results = cosine_rows(prediction, target, with_gradient=True, mean=True)
        assert_cosine_rows(*results, prediction, target, mean=True)
        ignored = torch.full((rows,), -1, device="cuda")
        results = cosine_rows(prediction, target, ignored, with_gradient=True, mean=True)
        assert not any(result.any() for result in results)


def test_gradient_beyond_the_range_of_float16():
    prediction, target = (gpu_rows(6, 1152, torch.float16, seed)[4:] for seed in range(2))
    prediction[0, 24:] = 0
    prediction[0, :24] = 2**-24  # the smallest that float16 holds
    prediction[1] = prediction[1].sign() * 60000
    losses, gradient = cosine_rows(prediction, target, with_gradient=True)
    assert_cosine_rows(losses, gradient, prediction, target)
    assert gradient[0].half().isinf().any() and (gradient[1].half() == 0).any()


@pytest.mark.parametrize("offset", [0, 8, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scale(dtype, offset):
    for count in (0, 1, 7, 8, 10239, 10240, 30725, 2049 * 10240 + 3):  # a block holds 10240
        memory = torch.randn(count + 16, device="cuda").to(dtype)
        values = memory[offset : offset + count]
        for factor in torch.tensor([0.37, -3.0, 0.0]).cuda():
            expected = memory.clone()
            expected[offset : offset + count] = (values.float() * factor).to(dtype)
            scale_in_place(values, factor)
            assert same_bits([memory], [expected])


def test_scale_takes_any_shape():
    values = torch.ones(2, 3, 4, 5, device="cuda")
    scale_in_place(values, torch.full((1,), 3.0, device="cuda"))
    scale_in_place(values[1, 2, 3, 4], torch.tensor(2.0, device="cuda").expand(1))
    assert (values.flatten()[:-1] == 3).all() and values[1, 2, 3, 4] == 6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scale_by_one_touches_nothing(dtype):
    bits = torch.arange(2**16).to(torch.uint16)  # among them NaNs that arithmetic would change
    values = torch.stack((bits, bits), -1).flatten().view(dtype).cuda()
    before = values.clone()
    scale_in_place(values, torch.ones((), device="cuda"))
    assert same_bits([values], [before])


def test_in_a_cuda_graph():
    """And so without a wait of the host: count and factor are read on the GPU."""
    x, target = (gpu_rows(9, 96, torch.bfloat16, seed) for seed in range(2))
    index, factor = torch.arange(9, device="cuda"), torch.ones((), device="cuda")

    def gradient_of_a_mean():
        _, gradient = cosine_rows(x, target, index, with_gradient=True, mean=True)
        scale_in_place(gradient, factor)
        return gradient

    gradient_of_a_mean()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradient_of_a_mean()
    index[3:6], factor[()] = -1, 0.37
    graph.replay()
    assert same_bits([captured], [gradient_of_a_mean()])


@pytest.mark.parametrize(("offset", "gap"), [(0, 0), (8, 16), (4, 0), (1, 0), (0, 3), (5, 1)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_alignment_and_distance_of_rows(dtype, offset, gap):
    prediction = embedded(gpu_rows(49, 1152, dtype), offset, gap)
    target = embedded(gpu_rows(49, 1152, torch.float32, seed=1), gap, offset)
    losses, gradient = cosine_rows(prediction, target, with_gradient=True)
    assert_cosine_rows(losses, gradient, prediction, target)
    assert_quantised(*quantise_rows(prediction), prediction, gelu=False)
    features = embedded(gpu_rows(53, 1152, dtype)[4:].expand(3, 49, 1152), offset, gap)
    assert_pooled(pool_normalize_rows(features, 4), features, 4)


def test_one_row_for_all():
    prediction = gpu_rows(20, 96, torch.bfloat16)
    target = gpu_rows(5, 96, torch.bfloat16, seed=1)[4:].expand(20, 96)
    losses, gradient = cosine_rows(prediction, target, with_gradient=True)
    assert_cosine_rows(losses, gradient, prediction, target)


@pytest.mark.parametrize(("side", "grid"), [(27, 8), (3, 7), (1, 2), (4, 4), (5, 1), (16, 3)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pool(dtype, side, grid):
    for images, columns in ((0, 96), (1, 33), (3, 1152), (2, 1288)):
        features = gpu_rows(images * side * side + 4, columns, dtype)[4:]
        features = features.view(images, side * side, columns)
        pooled = pool_normalize_rows(features, grid)
        assert_pooled(pooled, features, grid)
        assert same_bits([pooled], [pool_normalize_rows(features, grid)])


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_quantise(dtype, columns, gelu):
    for rows in ROWS:
        x = gpu_rows(rows, columns, dtype)
        values, scales = quantise_rows(x, gelu=gelu)
        assert_quantised(values, scales, x, gelu=gelu)
        assert same_bits((values, scales), quantise_rows(x, gelu=gelu))
        if not gelu and rows:
            expected, expected_scales = quantise_heads(x[None])
            assert torch.equal(scales, expected_scales)
            assert torch.equal(values.float(), expected[0].float())


@pytest.mark.parametrize("columns", [96, 33, 2048])
def test_quantise_of_rows_that_are_not_finite(columns):
    x = gpu_rows(4, columns, torch.float32)
    x[1, 3], x[2, 5], x[3, 0] = float("nan"), float("inf"), -float("inf")
    for gelu in (False, True):
        values, scales = quantise_rows(x, gelu=gelu)
        assert (values[0].float() == 0).all() and scales[0] == 1
        assert values[1:].float().isnan().all()


def test_on_another_stream():
    target = gpu_rows(4096, 1152, torch.bfloat16, seed=1)
    expected = cosine_rows(target * 2, target, with_gradient=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # were it on the default stream, it would read too early
        prediction = target * 2
        results = cosine_rows(prediction, target, with_gradient=True)
    stream.synchronize()
    assert same_bits(results, expected)


def test_more_elements_than_32_bits_count():
    columns = 1152
    rows = 2**31 // columns + 5
    if torch.cuda.mem_get_info()[0] < 5 * 2 * rows * columns:
        pytest.skip("too little free GPU memory")
    x = torch.zeros(rows, columns, dtype=torch.bfloat16, device="cuda")
    x[-9:] = gpu_rows(9, columns, torch.bfloat16)
    target = gpu_rows(9, columns, torch.bfloat16, seed=1)
    index = torch.full((rows,), -1, device="cuda")
    index[-9:] = torch.arange(9, device="cuda")
    losses, gradient = cosine_rows(x, target, index, with_gradient=True)
    expected = cosine_rows(x[-9:], target, with_gradient=True)
    assert same_bits((losses[-9:], gradient[-9:]), expected)
    assert not losses[:-9].any() and not gradient[:-9].any()
    del gradient
    values, scales = quantise_rows(x)
    assert same_bits((values[-9:], scales[-9:]), quantise_rows(x[-9:]))
    doubled = x[-9:] * 2
    scale_in_place(x, torch.tensor(2.0, device="cuda"))
    assert same_bits([x[-9:]], [doubled])


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_public_loss_and_its_gradient(dtype, reduction):
    index = torch.tensor([2, -1, 0, 1, 2, 0, 1, 2, -1], device="cuda")
    target = gpu_rows(3, 1152, dtype, seed=1)
    results = []
    for impl in ("cuda", "torch"):
        prediction = gpu_rows(9, 1152, dtype).clamp(-1e4, 1e4).requires_grad_()
        loss = cosine_loss(prediction, target, target_index=index, reduction=reduction, impl=impl)
        (3 * loss.sum()).backward()
        results.append((loss.detach(), prediction.grad))
    tolerance = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-5}
    torch.testing.assert_close(*results, **tolerance)


def test_the_public_pooling():
    features = gpu_rows(49, 96, torch.bfloat16)[None].requires_grad_()
    with pytest.raises(ValueError, match="its backward runs in Triton and PyTorch only"):
        pool_normalize(features, 3, impl="cuda")
    features = features.detach()
    expected = pool_normalize_rows(features, 3)
    assert same_bits([pool_normalize(features, 3, impl="cuda")], [expected])
    turned = features.transpose(1, 2).contiguous().transpose(1, 2)
    assert same_bits([pool_normalize(turned, 3, impl="cuda")], [expected])


def test_opcheck():
    x = gpu_rows(9, 96, torch.bfloat16)
    ops = torch.ops.metamorph_ops
    index = torch.arange(9, device="cuda")
    torch.library.opcheck(ops.cosine_rows.default, (x, x, None, True, True, None))
    torch.library.opcheck(ops.cosine_rows.default, (x.half(), x, index, True, True, index.sum()))
    torch.library.opcheck(ops.cosine_rows.default, (x, x, index, False, False, None))
    torch.library.opcheck(ops.pool_normalize.default, (x[None], 2))
    torch.library.opcheck(ops.quantise_rows.default, (x, True))
    for factor in (1.0, 0.37):
        torch.library.opcheck(ops.scale_.default, (x, torch.tensor(factor, device="cuda")))


def test_compiled_equals_eager():
    def everything(x, target, index):
        losses, gradient = cosine_rows(x, target, index, with_gradient=True, mean=True)
        scale_in_place(gradient, losses[4])
        scale_in_place(target, losses[5])
        return losses, gradient, pool_normalize_rows(x[None], 2), *quantise_rows(x, gelu=True)

    x, target = (gpu_rows(9, 96, torch.bfloat16, seed) for seed in range(2))
    index, targets = torch.arange(9, device="cuda"), (target.clone(), target.clone())
    compiled = torch.compile(everything, fullgraph=True)
    assert same_bits(compiled(x, targets[0], index), everything(x, targets[1], index))
    assert same_bits(targets[:1], targets[1:]) and not torch.equal(targets[0], target)


def test_arguments_are_named():
    x = gpu_rows(9, 96, torch.bfloat16)
    index, factor = torch.arange(9, device="cuda"), torch.ones((), device="cuda")
    ops = torch.ops.metamorph_ops
    failures = [
        ("target: .*CUDA", lambda: cosine_rows(x, x.cpu(), with_gradient=True)),
        ("target: .*96 columns", lambda: cosine_rows(x, x[:, :90], with_gradient=True)),
        ("target: .*9 rows", lambda: cosine_rows(x, x[:5], with_gradient=True)),
        ("prediction: .*bfloat16", lambda: cosine_rows(x.double(), x, with_gradient=True)),
        ("prediction: .*columns", lambda: cosine_rows(x[:, :0], x, with_gradient=True)),
        ("target_index: .*int64", lambda: cosine_rows(x, x, index.int(), with_gradient=True)),
        ("target_index: .*9", lambda: cosine_rows(x, x, index[:5], with_gradient=True)),
        ("target_index: .*CUDA", lambda: cosine_rows(x, x, index.cpu(), with_gradient=True)),
        ("count: expected", lambda: ops.cosine_rows(x, x, index, True, True, None)),
        ("count: expected", lambda: ops.cosine_rows(x, x, index, True, False, index.sum())),
        ("count: expected", lambda: ops.cosine_rows(x, x, None, True, True, index.sum())),
        ("count: .*int64", lambda: ops.cosine_rows(x, x, index, True, True, factor)),
        ("count: .*shape", lambda: ops.cosine_rows(x, x, index, True, True, index[:1])),
        ("count: .*CUDA", lambda: ops.cosine_rows(x, x, index, True, True, index.sum().cpu())),
        ("values: .*contiguous", lambda: scale_in_place(x.t(), factor)),
        ("values: .*bfloat16", lambda: scale_in_place(x.double(), factor)),
        ("factor: .*CUDA", lambda: scale_in_place(x, factor.cpu())),
        ("factor: .*float32", lambda: scale_in_place(x, factor.half())),
        ("factor: .*shape", lambda: scale_in_place(x, factor.expand(2))),
        ("features: .*dimensions", lambda: pool_normalize_rows(x, 2)),
        ("features: .*square", lambda: pool_normalize_rows(x[None, :8], 2)),
        ("grid: .*got 0", lambda: pool_normalize_rows(x[None], 0)),
        ("x: .*dimensions", lambda: quantise_rows(x[None])),
    ]
    for expected, call in failures:
        with pytest.raises(RuntimeError, match=expected):
            call()
