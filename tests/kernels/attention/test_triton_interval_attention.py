from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

from metamorph_kernels import interval_attention, intervals_from_rows, key_intervals, reference
from metamorph_kernels.attention import interval_triton
from tests.kernels.comparisons import value_and_gradients
from tests.kernels.conftest import INTERPRETED
from tests.kernels.random_rows import random_heads, random_row

# The interpreter takes milliseconds a step and no bfloat16: hundreds of tiny rows in tiny tiles.
DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.bfloat16, torch.float16)
LONGEST, MOST = (14, 4) if INTERPRETED else (700, 6)
# The lengths, head dims, groups and scales below repeat after 60 rows.
CHUNKS, ROWS_IN_CHUNK = (12, 10) if INTERPRETED else (12, 4)
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

pytestmark = pytest.mark.usefixtures("poisoned", "tiles")


@pytest.fixture
def tiles(monkeypatch):
    if INTERPRETED:
        small = interval_triton.Tiles(16, 16, num_warps=4, num_stages=1)
        monkeypatch.setattr(interval_triton, "TILES", dict.fromkeys(interval_triton.TILES, small))


def ours(q, k, v, intervals, **options):
    return interval_attention(q, k, v, intervals, impl="triton", **options)


def plain(q, k, v, intervals, scale=None):
    """One dense masked call in the dtype of the inputs."""
    mask = reference.interval_mask(intervals)
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)
    return out[0].transpose(0, 1)


def both_outputs(attend):
    """Out and lse as one tensor, so that the cotangent reaches both."""

    def flat(q, k, v):
        out, lse = attend(q, k, v)
        return torch.cat([out.flatten().to(lse.dtype), lse.flatten()])

    return flat


def assert_close_to_float64(tensors, intervals, scale=None):
    """Out, lse and gradients: within the tolerance of the dtype or twice the error of SDPA."""
    exact = [tensor.double() for tensor in tensors]
    truth = value_and_gradients(
        both_outputs(
            lambda q, k, v: reference.interval_attention(
                q, k, v, intervals, scale=scale, return_lse=True
            )
        ),
        *exact,
    )
    actual = value_and_gradients(
        both_outputs(lambda q, k, v: ours(q, k, v, intervals, scale=scale, return_lse=True)),
        *tensors,
    )
    dtype = tensors[0].dtype
    for name, value, true in zip(("out and lse", "dq", "dk", "dv"), actual, truth, strict=True):
        error = (value.double() - true).abs().max().item()
        bound = TOLERANCE[dtype] * max(1.0, true.abs().max().item())
        assert error <= bound, f"{name}: error {error:.2e}, bound {bound:.2e}"  # NaN fails too


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_packings_against_float64(device, chunk):
    for seed in range(chunk * ROWS_IN_CHUNK, (chunk + 1) * ROWS_IN_CHUNK):
        longest = (LONGEST // 2, LONGEST, 3 * LONGEST)[seed % 3]  # shorter and longer than a tile
        lengths, spans = random_row(seed, longest, MOST)
        head_dim = (64, 80, 96, 128)[seed % 4]
        group, key_heads = (1, 2, 4, 8, 3)[seed % 5], 1 + seed % 2
        tensors = random_heads(
            sum(lengths), group * key_heads, key_heads, head_dim, DTYPES[seed % 2], device, seed
        )
        intervals = key_intervals(lengths, spans, device=device)
        try:
            assert_close_to_float64(tensors, intervals, scale=(None, 0.3)[seed // 2 % 2])
        except AssertionError as error:
            raise AssertionError(f"{seed=} {lengths=} {spans=} {head_dim=} {group=}") from error


@pytest.mark.parametrize("name", ["sliding window", "nobody sees the last keys", "prefixes"])
def test_other_masks_of_one_interval_a_query(device, name):
    token = torch.arange(45, device=device)
    row_start, row_end = {
        "sliding window": ((token - 6).clamp(min=0), token + 1),
        "nobody sees the last keys": (token * 0, (token + 1).clamp(max=20)),
        "prefixes": (
            token // 20 * 20,
            torch.maximum(token // 20 * 20 + 7, token + 1).clamp(max=45),
        ),
    }[name]
    intervals = intervals_from_rows(row_start, row_end)
    assert_close_to_float64(random_heads(45, 4, 2, 64, DTYPES[0], device), intervals)


@pytest.mark.parametrize("dtype", DTYPES)
def test_errs_at_most_twice_as_much_as_sdpa(device, dtype):
    lengths, spans = random_row(3, LONGEST, MOST)
    intervals = key_intervals(lengths, spans, device=device)
    tensors = random_heads(sum(lengths), 4, 2, 64, dtype, device)
    truth = value_and_gradients(
        lambda q, k, v: reference.interval_attention(q, k, v, intervals),
        *(tensor.double() for tensor in tensors),
    )
    candidates = (
        lambda q, k, v: ours(q, k, v, intervals),
        lambda q, k, v: plain(q, k, v, intervals),
    )
    errors = [
        [
            (value.double() - true).abs().max().item()
            for value, true in zip(value_and_gradients(candidate, *tensors), truth, strict=True)
        ]
        for candidate in candidates
    ]
    for mine, theirs in zip(*errors, strict=True):
        assert mine <= 2 * theirs + 1e-6, errors


def test_one_document_is_causal_sdpa_and_one_span_is_full_sdpa(device):
    tokens = 37 if INTERPRETED else 517
    q, k, v = random_heads(tokens, 2, 2, 64, DTYPES[0], device)
    heads_first = [tensor.transpose(0, 1)[None] for tensor in (q, k, v)]
    tolerance = TOLERANCE[DTYPES[0]]
    for spans, causal in (((), True), (((0, tokens),), False)):
        expected = F.scaled_dot_product_attention(*heads_first, is_causal=causal)[0].transpose(0, 1)
        out = ours(q, k, v, key_intervals([tokens], spans, device=device))
        torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


def test_two_packed_documents_are_two_calls(device):
    lengths = (19, 22) if INTERPRETED else (301, 422)
    tensors = random_heads(sum(lengths), 4, 1, 64, DTYPES[0], device)
    packed = value_and_gradients(
        lambda q, k, v: ours(q, k, v, key_intervals(lengths, device=device)), *tensors
    )

    def apart(q, k, v):
        documents = zip(*(tensor.split(lengths) for tensor in (q, k, v)), strict=True)
        return torch.cat(
            [ours(*rows, key_intervals([len(rows[0])], device=device)) for rows in documents]
        )

    tolerance = TOLERANCE[DTYPES[0]]
    for one, other in zip(packed, value_and_gradients(apart, *tensors), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_causal_rows_give_the_same_bits_with_and_without_loading_their_ends(device):
    lengths, _ = random_row(5, LONGEST, MOST)
    tensors = random_heads(sum(lengths), 4, 2, 64, DTYPES[0], device)
    intervals = key_intervals(lengths, device=device)
    assert intervals.causal
    loaded = [
        value_and_gradients(lambda q, k, v, i=i: ours(q, k, v, i), *tensors)
        for i in (intervals, replace(intervals, causal=False))
    ]
    for one, other in zip(*loaded, strict=True):
        assert torch.equal(one, other)


def test_twice_the_same_bits(device):
    lengths, spans = random_row(8, LONGEST, MOST)
    intervals = key_intervals(lengths, spans, device=device)
    tensors = random_heads(sum(lengths), 4, 2, 128, DTYPES[1], device)
    runs = [
        value_and_gradients(lambda q, k, v: ours(q, k, v, intervals), *tensors) for _ in range(2)
    ]
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


def test_views_of_a_fused_projection_are_read_in_place(device, monkeypatch):
    intervals = key_intervals([9, 12], [(2, 6)], device=device)
    fused = torch.cat(random_heads(21, 4, 2, 64, DTYPES[1], device), 1)  # [T, Hq + 2 Hkv, D]
    dense = [part.contiguous() for part in fused.split([4, 2, 2], 1)]

    def from_fused(fused):
        return ours(*fused.split([4, 2, 2], 1), intervals)

    monkeypatch.setattr(interval_triton, "describable", lambda tensor: tensor)  # no copies
    views = value_and_gradients(from_fused, fused)
    out, *gradients = value_and_gradients(lambda q, k, v: ours(q, k, v, intervals), *dense)
    assert torch.equal(views[0], out)
    assert torch.equal(views[1], torch.cat(gradients, 1))


def test_views_that_hopper_cannot_address_are_copied(device):
    intervals = key_intervals([9, 12], device=device)
    q, k, v = random_heads(21, 2, 2, 64, DTYPES[1], device)
    expected = ours(q, k, v, intervals)
    padded = F.pad(q, (1, 2))[..., 1:-2]  # an odd address, rows of 67
    flipped = k.transpose(1, 2).contiguous().transpose(1, 2)  # the last dimension is not dense
    assert torch.equal(ours(padded, flipped, v, intervals), expected)


def test_gradient_that_is_one_number_expanded(device):
    intervals = key_intervals([9, 12], device=device)
    leaves = [leaf.requires_grad_() for leaf in random_heads(21, 2, 1, 64, DTYPES[1], device)]
    out = ours(*leaves, intervals)
    summed = torch.autograd.grad(out.sum(), leaves, retain_graph=True)
    dense = torch.autograd.grad(out, leaves, torch.ones_like(out))
    for one, other in zip(summed, dense, strict=True):
        assert torch.equal(one, other)


def test_loss_of_lse_alone(device):
    intervals = key_intervals([9, 12], [(10, 15)], device=device)
    tensors = random_heads(21, 2, 1, 64, DTYPES[0], device)
    truth, actual = (
        value_and_gradients(
            lambda q, k, v, f=f: f(q, k, v, intervals, return_lse=True)[1] + 0 * v.sum(), *leaves
        )
        for f, leaves in (
            (reference.interval_attention, [t.double() for t in tensors]),
            (ours, tensors),
        )
    )
    tolerance = TOLERANCE[DTYPES[0]]
    for one, other in zip(actual, truth, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)


def test_nothing_crosses_documents_or_comes_back_in_time(device):
    intervals = key_intervals([20, 25], [(22, 30)], device=device)
    q, k, v = random_heads(45, 2, 2, 64, DTYPES[0], device)
    before = ours(q, k, v, intervals)
    k[20:], v[20:] = 50.0, -50.0
    after = ours(q, k, v, intervals)
    assert torch.equal(after[:20], before[:20]) and not torch.equal(after[20:], before[20:])
    k, v = random_heads(45, 2, 2, 64, DTYPES[0], device)[1:]
    k[30], v[30] = 50.0, -50.0  # the token after the span
    after = ours(q, k, v, intervals)
    assert torch.equal(after[:30], before[:30]) and not torch.equal(after[30], before[30])


def test_operator_checks(device):
    intervals = key_intervals([9, 12], [(2, 6)], device=device)
    tensors = random_heads(21, 2, 1, 64, DTYPES[1], device)
    vectors = (intervals.row_start, intervals.row_end, intervals.col_start, intervals.col_end)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    forward = torch.ops.metamorph_kernels.interval_attention.default
    torch.library.opcheck(forward, (*leaves, *vectors, False, 0.125, False))
    tensors = [tensor.detach() for tensor in tensors]
    out, lse = forward(*tensors, *vectors, False, 0.125, False)
    backward = torch.ops.metamorph_kernels.interval_attention_backward.default
    arguments = (torch.ones_like(out), torch.ones_like(lse), *tensors, out, lse, *vectors)
    torch.library.opcheck(backward, (*arguments, False, 0.125, False))


def test_compiles_whole_and_once_for_all_lengths(device):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ours, fullgraph=True, backend=counter)
    tensors = random_heads(40, 4, 2, 64, DTYPES[1], device)
    rows = [([40], [(3, 9)]), ([7, 33], [(8, 20), (30, 40)]), ([1, 2, 3, 34], [(8, 10)])]
    for lengths, spans in rows:
        intervals = key_intervals(lengths, spans, device=device)
        eager, traced = (
            value_and_gradients(lambda q, k, v, f=f, i=intervals: f(q, k, v, i), *tensors)
            for f in (ours, compiled)
        )
        for one, other in zip(eager, traced, strict=True):
            assert torch.equal(one, other)
    assert counter.frame_count == 1


def test_one_compilation_serves_every_number_of_tokens(device):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ours, fullgraph=True, backend=counter, dynamic=True)
    for tokens in (21, 34, 48):
        tensors = random_heads(tokens, 4, 2, 64, DTYPES[1], device)
        intervals = key_intervals([5, tokens - 5], [(6, 9)], device=device)
        assert torch.equal(compiled(*tensors, intervals), ours(*tensors, intervals))
    assert counter.frame_count == 1


def test_elements_past_two_to_the_31(device):
    memory = torch.utils.deterministic
    memory.fill_uninitialized_memory, filled = False, memory.fill_uninitialized_memory
    try:  # pages that nobody writes cost no memory on a CPU
        storage = torch.empty(3 * 2**30 + 21 * 64, dtype=torch.float16, device=device)
    finally:
        memory.fill_uninitialized_memory = filled
    far = storage.as_strided((21, 4, 64), (64, 2**30, 1))
    q, k, v = random_heads(21, 4, 4, 64, torch.float16, device)
    intervals = key_intervals([9, 12], [(2, 6)], device=device)
    expected = ours(q, k, v, intervals)
    far.copy_(q)
    assert torch.equal(ours(far, k, v, intervals), expected)
    far.copy_(k)
    assert torch.equal(ours(q, far, v, intervals), expected)


@pytest.mark.skipif(INTERPRETED, reason="needs 50 GB of GPU memory")
def test_a_row_of_two_to_the_20_tokens():
    length, tokens = 4096, 2**20
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(
            tokens, heads, 128, generator=generator, dtype=torch.bfloat16, device="cuda"
        ).requires_grad_()
        for heads in (32, 8, 8)
    )
    out = ours(q, k, v, key_intervals([length] * (tokens // length), device="cuda"))
    out.backward(torch.ones_like(out))
    alone = key_intervals([length], device="cuda")
    for first in (0, tokens - length):  # each document as if it were the only one
        rows = slice(first, first + length)
        leaves = [tensor.detach()[rows].requires_grad_() for tensor in (q, k, v)]
        expected = ours(*leaves, alone)
        expected.backward(torch.ones_like(expected))
        assert torch.equal(out[rows], expected)
        for leaf, whole in zip(leaves, (q, k, v), strict=True):
            assert torch.equal(whole.grad[rows], leaf.grad)


@pytest.mark.parametrize(
    ("head_dim", "dtype", "words"),
    [
        (72, torch.float16, "head dimensions 64, 80, 96 and 128 only, got 72"),
        (64, torch.float64, "float64 runs in PyTorch only"),
    ],
)
def test_refuses(device, head_dim, dtype, words):
    tensors = random_heads(5, 1, 1, head_dim, dtype, device)
    with pytest.raises(ValueError, match=f"impl: interval_attention cannot run in Triton.*{words}"):
        ours(*tensors, key_intervals([5], device=device))
