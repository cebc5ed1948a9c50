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

from metamorph_kernels import cuda_library
from metamorph_kernels.attention_fp8 import quantise_heads
from metamorph_kernels.cuda_library import cosine_rows, pool_normalize_rows, quantise_rows

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
        losses, gradient = cosine_rows(prediction, target, index, with_gradient=True)
        assert_cosine_rows(losses, gradient, prediction, target, index)


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


def test_opcheck():
    x = gpu_rows(9, 96, torch.bfloat16)
    ops = torch.ops.metamorph_ops
    index = torch.arange(9, device="cuda")
    torch.library.opcheck(ops.cosine_rows.default, (x, x, None, True))
    torch.library.opcheck(ops.cosine_rows.default, (x, x, index, False))
    torch.library.opcheck(ops.pool_normalize.default, (x[None], 2))
    torch.library.opcheck(ops.quantise_rows.default, (x, True))


def test_compiled_equals_eager():
    def everything(x, target):
        losses, gradient = cosine_rows(x, target, with_gradient=True)
        return losses, gradient, pool_normalize_rows(x[None], 2), *quantise_rows(x, gelu=True)

    x, target = (gpu_rows(9, 96, torch.bfloat16, seed) for seed in range(2))
    compiled = torch.compile(everything, fullgraph=True)
    assert same_bits(compiled(x, target), everything(x, target))


def test_arguments_are_named():
    x = gpu_rows(9, 96, torch.bfloat16)
    index = torch.arange(9, device="cuda")
    failures = [
        ("target: .*CUDA", lambda: cosine_rows(x, x.cpu(), with_gradient=True)),
        ("target: .*96 columns", lambda: cosine_rows(x, x[:, :90], with_gradient=True)),
        ("target: .*9 rows", lambda: cosine_rows(x, x[:5], with_gradient=True)),
        ("prediction: .*bfloat16", lambda: cosine_rows(x.double(), x, with_gradient=True)),
        ("prediction: .*stride", lambda: cosine_rows(x.t(), x.t(), with_gradient=True)),
        ("prediction: .*columns", lambda: cosine_rows(x[:, :0], x, with_gradient=True)),
        ("target_index: .*int64", lambda: cosine_rows(x, x, index.int(), with_gradient=True)),
        ("target_index: .*9", lambda: cosine_rows(x, x, index[:5], with_gradient=True)),
        ("target_index: .*CUDA", lambda: cosine_rows(x, x, index.cpu(), with_gradient=True)),
        ("features: .*dimensions", lambda: pool_normalize_rows(x, 2)),
        ("features: .*square", lambda: pool_normalize_rows(x[None, :8], 2)),
        ("grid: .*got 0", lambda: pool_normalize_rows(x[None], 0)),
        ("x: .*dimensions", lambda: quantise_rows(x[None])),
    ]
    for expected, call in failures:
        with pytest.raises(RuntimeError, match=expected):
            call()
