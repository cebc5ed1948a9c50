"""The warp-specialised backward on an emulator: random interleavings, and planted faults."""

import pytest
import torch
import torch.nn.functional as F

from metamorph_kernels import key_intervals, reference
from metamorph_kernels.intervals import intervals_from_rows
from tests.kernels.emulator.attention import Schedule, random_packing
from tests.kernels.emulator.attention_backward import key_value_gradient, query_gradient
from tests.kernels.emulator.machine import Hazard
from tests.kernels.random_rows import random_heads

CHUNKS, ROWS_IN_CHUNK = 12, 12


def random_case(seed):
    intervals, heads, schedule = random_packing(seed, stages=(2, 3, 4))
    return Case(intervals, heads.query, heads.key, heads.dim, seed), schedule


class Case:
    """Heads, and what comes back to them: gradients of out and lse."""

    def __init__(self, intervals, query_heads, key_heads, head_dim, seed=0):
        self.intervals = intervals
        tokens = len(intervals.row_start)
        self.heads = random_heads(
            tokens, query_heads, key_heads, head_dim, torch.bfloat16, "cpu", seed
        )
        generator = torch.Generator().manual_seed(seed)
        shape = (tokens, query_heads, head_dim)
        self.out_gradient = torch.randn(shape, generator=generator).bfloat16()
        self.lse_gradient = torch.randn((query_heads, tokens), generator=generator)
        exact = [tensor.double().requires_grad_() for tensor in self.heads]
        self.out, self.lse = reference.interval_attention(*exact, intervals, return_lse=True)
        given = self.out_gradient.double(), self.lse_gradient.double()
        self.true = torch.autograd.grad((self.out, self.lse), exact, given)

    def gradients(self, schedule, *mutations):
        """dq, dk and dv on the emulator, and the flags of tiles of queries and of keys."""
        out, lse = self.out.detach().bfloat16(), self.lse.detach().float()
        q_gradient, lse_log2, delta, poisoned = query_gradient(
            *self.heads, out, lse, self.out_gradient, self.lse_gradient, self.intervals, schedule,
            *mutations,
        )  # fmt: skip
        *others, poisoned_keys = key_value_gradient(
            *self.heads, lse_log2, delta, self.out_gradient, self.intervals, schedule, *mutations
        )
        return (q_gradient, *others), (poisoned, poisoned_keys)

    def plain_gradients(self):
        """PyTorch's own in bfloat16, but lse in float32."""
        q, k, v = (tensor.clone().requires_grad_() for tensor in self.heads)
        heads = [tensor.transpose(0, 1)[None] for tensor in (q, k, v)]
        mask = reference.interval_mask(self.intervals)
        out = F.scaled_dot_product_attention(*heads, mask, enable_gqa=True)[0].transpose(0, 1)
        floats = (tensor.float() for tensor in (q, k, v))
        _, lse = reference.interval_attention(*floats, self.intervals, return_lse=True)
        return torch.autograd.grad((out, lse), (q, k, v), (self.out_gradient, self.lse_gradient))


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_packings_against_float64(chunk):
    """The worst error of a chunk is within twice that of PyTorch in bfloat16, of each gradient."""
    errors, plain_errors = [], []
    for seed in range(chunk * ROWS_IN_CHUNK, (chunk + 1) * ROWS_IN_CHUNK):
        case, schedule = random_case(seed)
        gradients, poisoned = case.gradients(schedule)
        assert not any(flags.any() for flags in poisoned)
        for found, given in ((errors, gradients), (plain_errors, case.plain_gradients())):
            found.append(
                [(one - true).abs().max() for one, true in zip(given, case.true, strict=True)]
            )
    assert (torch.tensor(errors).amax(0) <= 2 * torch.tensor(plain_errors).amax(0)).all()


def test_statistics_for_the_pass_for_keys():
    case = Case(key_intervals([70, 30]), 4, 2, 64)
    out, lse = case.out.detach().bfloat16(), case.lse.detach().float()
    _, lse_log2, delta, _ = query_gradient(
        *case.heads, out, lse, case.out_gradient, case.lse_gradient, case.intervals,
        Schedule(pack=2),
    )  # fmt: skip
    torch.testing.assert_close(lse_log2, lse / torch.tensor(2.0).log())
    expected = (out.float() * case.out_gradient.float()).sum(-1).t() - case.lse_gradient
    torch.testing.assert_close(delta, expected)


def test_keys_that_nobody_sees_get_zeros():
    """A sliding window that leaves the first 200 keys, a tile and more, to nobody."""
    tokens = 330
    starts = torch.full((tokens,), 200)
    case = Case(intervals_from_rows(starts, torch.full((tokens,), tokens)), 2, 1, 64)
    (_, k_gradient, v_gradient), poisoned = case.gradients(Schedule(pack=2))
    assert (k_gradient[:200] == 0).all() and (v_gradient[:200] == 0).all()
    torch.testing.assert_close(k_gradient.double(), case.true[1], atol=0.05, rtol=0.02)
    assert not any(flags.any() for flags in poisoned)


def test_the_interleaving_does_not_change_a_bit():
    case, _ = random_case(6)
    first, *others = (
        case.gradients(Schedule(seed, programs, pack=2, stages=stages))
        for seed, programs, stages in ((0, 1, 2), (1, 3, 3), (2, 2, 4))
    )
    for other in others:
        for one, another in zip(first, other, strict=True):
            assert all(map(torch.equal, one, another))


def test_a_tile_that_is_not_finite_is_flagged_and_no_other():
    case = Case(key_intervals([40, 130]), 2, 1, 64)
    q, k, v = case.heads
    k[60] = torch.nan  # of the second document, in the first tile of 64 queries and of 128 keys
    _, (queries, keys) = case.gradients(Schedule(pack=2))
    assert queries.tolist() == [True, True, True] and keys.tolist() == [True, False]
    k[60], k[160] = 1, torch.inf
    _, (queries, keys) = case.gradients(Schedule(pack=2))
    # Nobody of the first tile meets it, nobody of the second sees it; late tokens come first.
    assert queries.tolist() == [True, True, False] and keys.tolist() == [False, True]


# What somebody could get wrong, as (old, new) texts of one of the kernels.
FAULTS_OF_QUERIES = {
    "keys are read before they came": ("            mbarrier.wait(full.index(slot), parity)\n", ""),
    "queries are read before they came": (
        "        mbarrier.wait(rows_full.index(0), rows_parity)\n        rows_parity",
        "        rows_parity",
    ),
    "a slot is not waited for": ("            mbarrier.wait(empty.index(slot), parity)\n", ""),
    "a slot is freed while a product reads it": (
        "            mbarrier.arrive(empty.index(last_slot), count=1)\n",
        "            mbarrier.arrive(empty.index(slot), count=1)\n",
    ),
    "scores are used before they are there": (
        "            scores = warpgroup_mma_wait(1, deps=[product])",
        "            scores = warpgroup_mma_wait(2, deps=[product])",
    ),
    "sums are not waited for": (
        "            q_gradient, operand = warpgroup_mma_wait(1, deps=[sums, operand])",
        "            q_gradient, operand = warpgroup_mma_wait(2, deps=[sums, operand])",
    ),
    "the producer begins with the wrong parity": (
        "    rows_parity = 1  # the phase before the first is over\n    slot = 0\n    parity = 1\n",
        "    rows_parity = 1  # the phase before the first is over\n    slot = 0\n    parity = 0\n",
    ),
    "one arrival frees a slot that two read": (
        "        new_barriers(STAGES, 2),\n",
        "        new_barriers(STAGES, 1),\n",
    ),
    "half of the bytes are expected": ("2 * k_desc.block_type.nbytes", "k_desc.block_type.nbytes"),
    "queries are replaced before their last product": (
        "        mbarrier.wait(rows_empty.index(0), rows_parity)\n        put_number(",
        "        put_number(",
    ),
    "a result is overwritten on its way out": ("        tma.store_wait(0)\n", ""),
    "a result is copied before TMA may see it": ("        fence_async_shared()\n", ""),
    "a place for results is not waited for": (
        "        mbarrier.wait(out_empty.index(0), rows_parity)\n",
        "",
    ),
    "the last slot is never freed": ("        mbarrier.arrive(empty.index(slot), count=1)\n", ""),
    "a tile is left out": (
        "        work = gl.num_programs(0) + gl.atomic_add",
        "        work = 1 + gl.num_programs(0) + gl.atomic_add",
    ),
}
FAULTS_OF_KEYS = {
    "queries are read before they came": (
        "            mbarrier.wait(full.index(slot), parity)\n",
        "",
    ),
    "keys are read before they came": (
        "        mbarrier.wait(keys_full.index(0), keys_parity)\n        keys_parity",
        "        keys_parity",
    ),
    "a slot is not waited for": ("                mbarrier.wait(empty.index(slot), parity)\n", ""),
    "a slot is freed while a product reads it": (
        "            mbarrier.arrive(empty.index(last_slot), count=1)\n",
        "            mbarrier.arrive(empty.index(slot), count=1)\n",
    ),
    "scores are used before they are there": (
        "            scores = warpgroup_mma_wait(1, deps=[product])",
        "            scores = warpgroup_mma_wait(2, deps=[product])",
    ),
    "gradients of weights are used before they are there": (
        "    weights_gradient = warpgroup_mma_wait(1, deps=[gradient])",
        "    weights_gradient = warpgroup_mma_wait(2, deps=[gradient])",
    ),
    "a slot is freed before its sums are waited for": (
        "                1, deps=[v_sums, k_sums, operand, gradient_operand]",
        "                2, deps=[v_sums, k_sums, operand, gradient_operand]",
    ),
    "the consumers begin with the wrong parity": (
        "    slot = 0\n    parity = 0\n",
        "    slot = 0\n    parity = 1\n",
    ),
    "one arrival frees a slot that two read": (
        "        new_barriers(STAGES, 2),\n",
        "        new_barriers(STAGES, 1),\n",
    ),
    "lse and delta are not expected": (" + 2 * delta_desc.block_type.nbytes", ""),
    "keys are replaced before their last product": (
        "        mbarrier.wait(keys_empty.index(0), keys_parity)\n        keys_parity ^= 1\n",
        "        keys_parity ^= 1\n",
    ),
    "results are overwritten on their way out": (
        "        tma.store_wait(0)  # of the tile before\n",
        "",
    ),
    "the last results are not waited for": ("    tma.store_wait(0)\n\n", "\n"),
    "results are copied before TMA may see them": ("        fence_async_shared()\n", ""),
    "the last slot is never freed": ("        mbarrier.arrive(empty.index(slot), count=1)\n", ""),
    "a tile is left out": (
        "        place = gl.num_programs(0) + gl.atomic_add",
        "        place = 1 + gl.num_programs(0) + gl.atomic_add",
    ),
}


@pytest.fixture(scope="module")
def long_case():
    return Case(key_intervals([150, 100, 90]), 2, 1, 64)


def is_found(run, fault):
    """In every interleaving, not only in an unlucky one: as a hazard, or as NaN in a result."""
    for seed in range(3):
        try:
            *gradients, _ = run(Schedule(seed, pack=2, programs=2 - seed % 2), fault)
        except Hazard:
            continue
        if not any(gradient.isnan().any() for gradient in gradients):
            return False
    return True


@pytest.mark.parametrize("fault", FAULTS_OF_QUERIES)
def test_a_fault_planted_in_the_pass_for_queries_is_found(fault, long_case):
    case = long_case
    given = case.out.detach().bfloat16(), case.lse.detach().float()
    assert is_found(
        lambda *schedule: query_gradient(
            *case.heads, *given, case.out_gradient, case.lse_gradient, case.intervals, *schedule
        ),
        FAULTS_OF_QUERIES[fault],
    )


@pytest.mark.parametrize("fault", FAULTS_OF_KEYS)
def test_a_fault_planted_in_the_pass_for_keys_is_found(fault, long_case):
    case = long_case
    statistics = (
        (case.lse / torch.tensor(2.0).log()).detach().float(),
        torch.zeros_like(case.lse_gradient),
    )
    assert is_found(
        lambda *schedule: key_value_gradient(
            *case.heads, *statistics, case.out_gradient, case.intervals, *schedule
        ),
        FAULTS_OF_KEYS[fault],
    )
