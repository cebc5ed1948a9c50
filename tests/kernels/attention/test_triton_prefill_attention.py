import random

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from metamorph_kernels import prefill_attention, prefill_row, reference
from metamorph_kernels.attention import prefill_triton
from metamorph_kernels.attention.interval_triton import Tiles
from tests.kernels.comparisons import assert_as_close_as_plain
from tests.kernels.conftest import INTERPRETED

DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
SEQUENCES, SLOTS = (3, 75) if INTERPRETED else (5, 1500)

pytestmark = pytest.mark.usefixtures("poisoned", "tiles")


@pytest.fixture
def tiles(monkeypatch):
    if INTERPRETED:
        small = Tiles(16, 16, num_warps=4, num_stages=1)
        monkeypatch.setattr(prefill_triton, "TILES", dict.fromkeys(prefill_triton.TILES, small))


def ours(q, k_cache, v_cache, row, **options):
    return prefill_attention(q, k_cache, v_cache, row, impl="triton", **options)


def random_inputs(tokens, group, key_heads, head_dim, dtype, device, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(device, dtype)

    cache = (SEQUENCES, SLOTS, key_heads, head_dim)
    return normal(tokens, group * key_heads, head_dim), normal(*cache), normal(*cache)


def random_pieces(generator):
    """Of any order, several of a sequence, with edges at those of tiles, and spans in some."""
    edge = 16 if INTERPRETED else 128
    pieces, spans = [], []
    first = 0
    for _ in range(generator.randint(1, 4)):
        count = generator.choice([1, edge - 1, edge, edge + 1, generator.randint(1, 2 * edge)])
        start = generator.choice([0, edge - 1, edge, generator.randint(0, SLOTS - count)])
        pieces.append((generator.randrange(SEQUENCES), min(start, SLOTS - count), count))
        cuts = sorted(generator.randint(first, first + count) for _ in range(2))
        if cuts[0] < cuts[1] and generator.random() < 0.5:
            spans.append(tuple(cuts))
        first += count
    return pieces, spans


def hide_with_nan(row, *caches):
    """Fill what no query sees."""
    for sequence in range(SEQUENCES):
        seen = row.visible[row.sequences == sequence].tolist()
        for cache in caches:
            cache[sequence, max(seen, default=0) :] = torch.nan


@pytest.mark.parametrize("seed", range(24))
def test_random_pieces_against_float64(device, seed):
    generator = random.Random(seed)
    key_heads, group = generator.randint(1, 2), generator.choice([1, 2, 3, 4, 8, 12])
    head_dim, dtype = generator.choice([64, 80, 96, 128]), DTYPES[seed % 2]
    pieces, spans = random_pieces(generator)
    row = prefill_row(pieces, spans, device=device)
    tensors = random_inputs(len(row.visible), group, key_heads, head_dim, dtype, device, seed)
    scale = generator.choice([None, 0.3])
    exact = reference.prefill_attention(*(tensor.double() for tensor in tensors), row, scale=scale)
    plain = prefill_attention(*tensors, row, scale=scale, impl="torch")
    hide_with_nan(row, *tensors[1:])
    out = ours(*tensors, row, scale=scale)
    note = f"{pieces=} {spans=} {key_heads=} {group=} {head_dim=} "
    assert out.dtype == dtype and out.shape == tensors[0].shape
    assert_as_close_as_plain(out, plain, exact, TOLERANCE[dtype], note)


@pytest.mark.usefixtures("either_maximum")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, of NaN
@pytest.mark.parametrize(
    ("name", "number"), [("q", torch.nan), ("k", torch.nan), ("v", torch.nan), ("v", torch.inf)]
)
def test_what_is_not_finite_reaches_its_own_piece_and_head_alone(device, name, number):
    row = prefill_row([(0, 20, 9), (1, 0, 18), (0, 3, 5)], device=device)
    q, k_cache, v_cache = tensors = random_inputs(32, 2, 2, 64, DTYPES[0], device)
    before = ours(*tensors, row)
    {"q": q[4, 1], "k": k_cache[0, 24, 0], "v": v_cache[0, 24, 0]}[name][3] = number
    after = ours(*tensors, row)
    assert torch.equal(after[9:], before[9:]) and torch.equal(after[:, 2:], before[:, 2:])
    assert not after[4, 1].isfinite().all()
    if name == "q":
        after[4, 1] = before[4, 1]
        assert torch.equal(after, before)


def test_pieces_have_the_bits_that_they_have_alone(device):
    pieces = [(0, 20, 9), (1, 0, 18), (2, 7, 33)]
    row = prefill_row(pieces, device=device)
    q, *caches = random_inputs(60, 2, 2, 64, DTYPES[1], device)
    whole = ours(q, *caches, row)
    for piece, part in zip(pieces, (slice(0, 9), slice(9, 27), slice(27, 60)), strict=True):
        alone = ours(q[part], *caches, prefill_row([piece], device=device))
        assert torch.equal(alone, whole[part])


def test_slices_of_a_longer_cache_and_of_a_fused_projection_are_read_in_place(device):
    row = prefill_row([(1, 4, 20), (0, 0, 3)], device=device)
    q, *caches = random_inputs(23, 2, 2, 64, DTYPES[1], device)
    expected = ours(q, *caches, row)
    fused = torch.cat([q, q, q], 1)[:, 4:8]
    turned = [cache.transpose(1, 2).contiguous().transpose(1, 2) for cache in caches]
    assert torch.equal(ours(fused, *(cache[:2, :24] for cache in caches), row), expected)
    assert torch.equal(ours(q, *turned, row), expected)
    apart = torch.stack([q, q], -1)[..., 0]
    assert torch.equal(ours(apart, *caches, row), expected)


def test_refuses_a_cache_it_would_have_to_copy(device):
    row = prefill_row([(1, 4, 2)], device=device)
    q, k_cache, v_cache = random_inputs(2, 2, 2, 64, DTYPES[1], device)
    turned = v_cache.transpose(2, 3).contiguous().transpose(2, 3)
    with pytest.raises(ValueError, match="v_cache: expected 16-byte aligned strides"):
        ours(q, k_cache, turned, row)


@pytest.mark.parametrize(
    ("head_dim", "dtype", "words"),
    [
        (72, torch.float16, "head dimensions 64, 80, 96 and 128 only, got 72"),
        (64, torch.float64, "float64 runs in PyTorch only"),
    ],
)
def test_refuses(device, head_dim, dtype, words):
    tensors = random_inputs(1, 1, 1, head_dim, dtype, device)
    with pytest.raises(ValueError, match=f"impl: prefill_attention cannot run in Triton.*{words}"):
        ours(*tensors, prefill_row([(0, 0, 1)], device=device))


def test_refuses_to_differentiate_but_not_under_no_grad(device):
    q, *caches = random_inputs(2, 1, 1, 64, DTYPES[0], device)
    row = prefill_row([(0, 3, 2)], device=device)
    with pytest.raises(ValueError, match="no backward"):
        ours(q.requires_grad_(), *caches, row)
    with torch.no_grad():
        assert ours(q, *caches, row).isfinite().all()


def test_operator_checks(device):
    row = prefill_row([(0, 3, 2), (1, 0, 3)], [(2, 4)], device=device)
    tensors = random_inputs(5, 2, 1, 64, DTYPES[1], device)
    operator = torch.ops.metamorph_kernels.prefill_attention.default
    torch.library.opcheck(operator, (*tensors, row.visible, row.blocks, 0.125))


def test_compiles_whole_and_once_for_all_pieces(device):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ours, fullgraph=True, backend=counter)
    tensors = random_inputs(8, 2, 1, 64, DTYPES[1], device)
    for pieces in ([(0, 0, 5), (1, 4, 3)], [(2, 30, 1), (0, 9, 7)], [(1, 2, 4), (2, 0, 4)]):
        row = prefill_row(pieces, [(0, 1)], device=device)
        assert torch.equal(compiled(*tensors, row), ours(*tensors, row))
    assert counter.frame_count == 1
