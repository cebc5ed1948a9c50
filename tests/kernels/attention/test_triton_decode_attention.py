import random

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from metamorph_kernels import decode_attention, reference
from metamorph_kernels.attention import decode_triton
from tests.kernels.comparisons import assert_as_close_as_plain
from tests.kernels.conftest import INTERPRETED

DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
SLOTS = 75 if INTERPRETED else 1500

pytestmark = pytest.mark.usefixtures("poisoned", "blocks")


@pytest.fixture
def blocks(monkeypatch):
    if INTERPRETED:
        monkeypatch.setattr(decode_triton, "BLOCK_N", {2: 16, 4: 16})


def ours(q, k_cache, v_cache, lengths, **options):
    return decode_attention(q, k_cache, v_cache, lengths, impl="triton", **options)


def random_cache(batch, group, key_heads, head_dim, dtype, device, seed=0, slots=SLOTS):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(device, dtype)

    cache = (batch, slots, key_heads, head_dim)
    return normal(batch, group * key_heads, head_dim), normal(*cache), normal(*cache)


@pytest.mark.parametrize("seed", range(40))
def test_random_lengths_against_float64(device, monkeypatch, seed):
    generator = random.Random(seed)
    batch, key_heads = generator.randint(1, 3), generator.randint(1, 2)
    group, head_dim = generator.choice([1, 2, 3, 4, 8, 20]), generator.choice([64, 80, 96, 128])
    splits = generator.choice([1, 2, 4, 8])
    monkeypatch.setattr(decode_triton, "_splits", lambda *_: splits)
    dtype = DTYPES[seed % 2]
    q, k_cache, v_cache = random_cache(batch, group, key_heads, head_dim, dtype, device, seed)
    edges = [0, 1, 15, 16, 17, SLOTS - 1, SLOTS]
    lengths = [generator.choice([*edges, generator.randint(0, SLOTS)]) for _ in range(batch)]
    tensor = torch.tensor(lengths, dtype=(torch.int32, torch.int64)[seed % 2], device=device)
    scale = generator.choice([None, 0.3])
    out = ours(q, k_cache, v_cache, tensor, scale=scale)
    exact = reference.decode_attention(
        q.double(), k_cache.double(), v_cache.double(), tensor, scale=scale
    )
    plain = decode_attention(q, k_cache, v_cache, tensor, scale=scale, impl="torch")
    note = f"{lengths=} {group=} {head_dim=} {splits=}"
    assert out.dtype == dtype and out.shape == q.shape
    assert_as_close_as_plain(out, plain, exact, TOLERANCE[dtype], note)


def test_what_lies_past_a_length_does_not_count(device):
    q, k_cache, v_cache = random_cache(2, 4, 2, 64, DTYPES[0], device)
    lengths = torch.tensor([21, 40], device=device)
    before = ours(q, k_cache, v_cache, lengths)
    for fill in (1000.0, float("inf"), float("nan")):
        for cache in (k_cache, v_cache):
            cache[0, 21:], cache[1, 40:] = fill, -fill
        assert torch.equal(ours(q, k_cache, v_cache, lengths), before)


@pytest.mark.usefixtures("either_maximum")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, of NaN
@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_nan_shows_as_in_pytorch_and_in_no_other_head(device, monkeypatch, name, splits):
    monkeypatch.setattr(decode_triton, "_splits", lambda *_: splits)
    q, k_cache, v_cache = random_cache(2, 2, 2, 64, DTYPES[0], device)
    lengths = torch.tensor([40, 33], device=device)
    {"q": q[0, 1], "k": k_cache[0, 17, 1], "v": v_cache[0, 17, 1]}[name][3] = torch.nan
    tensors = (q.double(), k_cache.double(), v_cache.double())
    torch.testing.assert_close(
        ours(q, k_cache, v_cache, lengths).double(),
        reference.decode_attention(*tensors, lengths),
        rtol=TOLERANCE[DTYPES[0]],
        atol=TOLERANCE[DTYPES[0]],
        equal_nan=True,
    )


def test_a_slice_of_a_longer_cache_and_of_a_fused_projection(device):
    q, k_cache, v_cache = random_cache(2, 2, 2, 64, DTYPES[1], device)
    lengths = torch.tensor([30, 7], device=device)
    expected = ours(q, k_cache[:, :30].contiguous(), v_cache[:, :30].contiguous(), lengths)
    fused = torch.cat([q, q, q], 1)[:, 4:8]
    assert torch.equal(ours(fused, k_cache[:, :30], v_cache[:, :30], lengths), expected)


def test_a_cache_of_heads_before_slots_is_read_in_place(device):
    q, k_cache, v_cache = random_cache(2, 2, 2, 64, DTYPES[1], device)
    lengths = torch.tensor([30, 7], device=device)
    turned = [cache.transpose(1, 2).contiguous().transpose(1, 2) for cache in (k_cache, v_cache)]
    assert torch.equal(ours(q, *turned, lengths), ours(q, k_cache, v_cache, lengths))


def test_refuses_a_cache_it_would_have_to_copy(device):
    q, k_cache, v_cache = random_cache(2, 2, 2, 64, DTYPES[1], device)
    turned = v_cache.transpose(2, 3).contiguous().transpose(2, 3)
    with pytest.raises(ValueError, match="v_cache: expected 16-byte aligned strides"):
        ours(q, k_cache, turned, torch.tensor([3, 4], device=device))


@pytest.mark.parametrize(
    ("head_dim", "dtype", "words"),
    [
        (72, torch.float16, "head dimensions 64, 80, 96 and 128 only, got 72"),
        (64, torch.float64, "float64 runs in PyTorch only"),
    ],
)
def test_refuses(device, head_dim, dtype, words):
    q, k_cache, v_cache = random_cache(1, 1, 1, head_dim, dtype, device)
    with pytest.raises(ValueError, match=f"impl: decode_attention cannot run in Triton.*{words}"):
        ours(q, k_cache, v_cache, torch.tensor([3], device=device))


def test_refuses_to_differentiate_but_not_under_no_grad(device):
    q, k_cache, v_cache = random_cache(1, 1, 1, 64, DTYPES[0], device)
    lengths = torch.tensor([3], device=device)
    with pytest.raises(ValueError, match="no backward"):
        ours(q.requires_grad_(), k_cache, v_cache, lengths)
    with torch.no_grad():
        assert ours(q, k_cache, v_cache, lengths).isfinite().all()


def test_operator_checks(device):
    q, k_cache, v_cache = random_cache(2, 2, 1, 64, DTYPES[1], device, slots=20)
    lengths = torch.tensor([20, 7], device=device)
    operator = torch.ops.metamorph_kernels.decode_attention.default
    torch.library.opcheck(operator, (q, k_cache, v_cache, lengths, 0.125))


def test_compiles_whole_and_once_for_all_lengths(device):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ours, fullgraph=True, backend=counter)
    tensors = random_cache(2, 2, 1, 64, DTYPES[1], device, slots=20)
    for lengths in ([1, 20], [13, 0]):
        lengths = torch.tensor(lengths, device=device)
        assert torch.equal(compiled(*tensors, lengths), ours(*tensors, lengths))
    assert counter.frame_count == 1


@pytest.mark.skipif(INTERPRETED, reason="CUDA graphs need a GPU")
def test_a_cuda_graph_follows_the_lengths():
    tensors = random_cache(4, 4, 2, 128, torch.bfloat16, "cuda")
    lengths = torch.tensor([1, 7, 900, 1500], device="cuda")
    ours(*tensors, lengths)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ours(*tensors, lengths)
    for new in ([3, 0, 64, 1499], [1500, 1, 2, 65]):
        lengths.copy_(torch.tensor(new))
        graph.replay()
        assert torch.equal(out, ours(*tensors, lengths))


def test_splits_fill_the_device_whatever_the_lengths():
    cpu = torch.device("cpu")
    assert decode_triton._splits(256, 8192, 64, cpu) == 1
    assert decode_triton._splits(1, 8192, 64, cpu) == 8  # two SMs, four programs each
    assert decode_triton._splits(1, 60, 64, cpu) == 1  # never more parts than steps
