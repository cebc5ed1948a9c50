"""The warp-specialised forward on an emulator: random interleavings, and planted faults."""

import pytest
import torch
import torch.nn.functional as F

from metamorph_kernels import key_intervals, reference
from tests.kernels.emulator.attention import Schedule, forward, random_packing
from tests.kernels.emulator.machine import Hazard
from tests.kernels.random_rows import random_heads

CHUNKS, ROWS_IN_CHUNK = 12, 14


def random_case(seed):
    intervals, heads, schedule = random_packing(seed, stages=(1, 2, 3))
    tokens = len(intervals.row_start)
    tensors = random_heads(tokens, heads.query, heads.key, heads.dim, torch.bfloat16, "cpu", seed)
    return tensors, intervals, schedule


def plain(q, k, v, intervals):
    """PyTorch's own attention in the dtype of the inputs."""
    mask = reference.interval_mask(intervals)
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)[0].transpose(0, 1)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_packings_against_float64(chunk):
    """The worst error of a chunk is within twice that of PyTorch in bfloat16."""
    errors, plain_errors = [], []
    for seed in range(chunk * ROWS_IN_CHUNK, (chunk + 1) * ROWS_IN_CHUNK):
        tensors, intervals, schedule = random_case(seed)
        exact = [tensor.double() for tensor in tensors]
        true, true_lse = reference.interval_attention(*exact, intervals, return_lse=True)
        out, lse, poisoned = forward(*tensors, intervals, schedule)
        assert (lse - true_lse).abs().max() < 1e-5, schedule
        assert not poisoned.any()
        errors.append((out - true).abs().max().item())
        plain_errors.append((plain(*tensors, intervals) - true).abs().max().item())
    assert max(errors) <= 2 * max(plain_errors)


def test_the_interleaving_does_not_change_a_bit():
    tensors, intervals, _ = random_case(6)
    first, *others = (
        forward(*tensors, intervals, Schedule(seed, programs, pack=2))
        for seed, programs in ((0, 1), (1, 3), (2, 2))
    )
    for other in others:
        assert all(map(torch.equal, first, other))


def test_a_tile_that_is_not_finite_is_flagged_and_no_other():
    lengths = [40, 130]
    q, k, v = random_heads(sum(lengths), 2, 1, 64, torch.bfloat16, "cpu")
    v[60] = torch.nan  # of the second document, in the first tile of 64 tokens
    _, lse, poisoned = forward(q, k, v, key_intervals(lengths), Schedule(pack=2))
    assert poisoned.tolist() == [True, True, True]  # late tokens first
    assert lse.isfinite().all()
    v[60], v[150] = 1, torch.inf
    _, _, poisoned = forward(q, k, v, key_intervals(lengths), Schedule(pack=2))
    # Nobody of the second tile sees it, but the tile of keys that it meets has it.
    assert poisoned.tolist() == [True, True, False]


# What somebody could get wrong, as (old, new) texts of the kernel.
FAULTS = {
    "keys are read before they came": (
        "            mbarrier.wait(k_full.index(slot), parity)\n            if TAKE",
        "            if TAKE",
    ),
    "values are read before they came": (
        "            mbarrier.wait(v_full.index(value_slot), value_parity)\n",
        "",
    ),
    "a slot is not waited for": ("    mbarrier.wait(empty.index(slot), parity)\n", ""),
    "a slot of keys is freed while a product reads it": (
        "            scores = warpgroup_mma_wait(1, deps=[product])\n"
        "            mbarrier.arrive(k_empty.index(slot), count=1)\n",
        "            mbarrier.arrive(k_empty.index(slot), count=1)\n"
        "            scores = warpgroup_mma_wait(1, deps=[product])\n",
    ),
    "a slot of values is freed while a product reads it": (
        "            out, operand = warpgroup_mma_wait(0, deps=[sums, operand])\n"
        "            mbarrier.arrive(v_empty.index(value_slot), count=1)\n",
        "            mbarrier.arrive(v_empty.index(value_slot), count=1)\n"
        "            out, operand = warpgroup_mma_wait(0, deps=[sums, operand])\n",
    ),
    "a product is used before it is done": (
        "            scores = warpgroup_mma_wait(1, deps=[product])",
        "            scores = warpgroup_mma_wait(2, deps=[product])",
    ),
    "the producer begins with the wrong parity": (
        "    k_parity = 1\n",
        "    k_parity = 0\n",
    ),
    "a consumer begins with the wrong parity": (
        "    slot = 0\n    parity = 0\n",
        "    slot = 0\n    parity = 1\n",
    ),
    "one arrival frees a slot that two read": (
        "k_ring = (k_slots, new_barriers(STAGES, 1), new_barriers(STAGES, 2))",
        "k_ring = (k_slots, new_barriers(STAGES, 1), new_barriers(STAGES, 1))",
    ),
    "half of the bytes are expected": (
        "mbarrier.expect(q_full.index(queue), 2 * q_desc.block_type.nbytes)",
        "mbarrier.expect(q_full.index(queue), q_desc.block_type.nbytes)",
    ),
    "the queries' place is taken before their last product": (
        "        mbarrier.wait(q_empty.index(queue), queue_parity)\n        start",
        "        start",
    ),
    "a result is copied before TMA may see it": ("        fence_async_shared()\n", ""),
    "queries are overwritten while a result is copied": ("        tma.store_wait(0)\n", ""),
    "nobody passes the turn on": (
        "            if TAKE_TURNS:\n"
        "                mbarrier.arrive(turn.index(1 - HALF_NUMBER), count=1)\n"
        "            scores",
        "            scores",
    ),
    "a slot is never freed": (
        "        mbarrier.arrive(v_empty.index(slot), count=1)\n        slot, parity",
        "        slot, parity",
    ),
    "a tile is left out": (
        "        work = gl.num_programs(0) + gl.atomic_add",
        "        work = 1 + gl.num_programs(0) + gl.atomic_add",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault):
    """In every interleaving, not only in an unlucky one: as a hazard, or as NaN in the result."""
    lengths = [150, 100, 90]
    tensors = random_heads(sum(lengths), 2, 1, 64, torch.bfloat16, "cpu")
    for seed in range(3):
        schedule = Schedule(seed, pack=2, programs=2 - seed % 2)
        try:
            out, _, _ = forward(*tensors, key_intervals(lengths), schedule, FAULTS[fault])
        except Hazard:
            continue
        assert out.isnan().any(), schedule
