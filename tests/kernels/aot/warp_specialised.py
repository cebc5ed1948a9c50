"""A small warp-specialised kernel of the structure of attention, for the gate to judge.

A producer warp loads key tiles, and two consumer warp groups sum 2 ** (q k^T) over all of them.
Where `UNDER_THE_PRODUCT`, a consumer works on the scores of one tile while the product of the next
is in flight; else it waits for each product first.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from metamorph_kernels.compilation import Compilation, WarpGroups, gluon_descriptor_type

ROWS, COLUMNS, HEAD_DIM = 64, 64, 64
REGISTERS = (240, 240, 24)


@gluon.jit
def pin(values):
    """`values`, made by an instruction that stays before a later wait for products."""
    return gl.inline_asm_elementwise(
        "{ .reg .pred p; setp.eq.s32 p, $1, 0x7fffdead; @p nanosleep.u32 1; mov.b32 $0, $1; }",
        "=r,r", [values], dtype=gl.float32, is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def produce(q_desc, k_desc, queries, keys, full, empty, tiles):
    mbarrier.expect(full, 2 * q_desc.block_type.nbytes + k_desc.block_type.nbytes)
    tma.async_copy_global_to_shared(q_desc, [0, 0], full, queries.index(0))
    tma.async_copy_global_to_shared(q_desc, [64, 0], full, queries.index(1))
    tma.async_copy_global_to_shared(k_desc, [0, 0], full, keys)
    for tile in range(1, tiles):
        mbarrier.wait(empty, (tile & 1) ^ 1)
        mbarrier.expect(full, k_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(k_desc, [tile * 64, 0], full, keys)


@gluon.jit
def consume(
    queries, keys, full, empty, sum_ptr, tiles,
    GROUP: gl.constexpr, UNDER_THE_PRODUCT: gl.constexpr,
):  # fmt: skip
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    zeros = gl.zeros([64, 64], gl.float32, SCORES)
    scores = gl.full([64, 64], float("-inf"), gl.float32, SCORES)
    sums = gl.full([64], 0.0, gl.float32, gl.SliceLayout(1, SCORES))
    for tile in range(tiles):
        mbarrier.wait(full, tile & 1)
        product = warpgroup_mma(
            queries.index(GROUP), keys.permute([1, 0]), zeros, use_acc=False, is_async=True
        )
        if UNDER_THE_PRODUCT:
            sums = pin(sums + gl.sum(gl.exp2(scores), 1))
            scores = warpgroup_mma_wait(0, deps=[product])
        else:
            scores = warpgroup_mma_wait(0, deps=[product])
            sums += gl.sum(gl.exp2(scores), 1)
        mbarrier.arrive(empty, count=1)
    if UNDER_THE_PRODUCT:
        sums += gl.sum(gl.exp2(scores), 1)
    row = gl.arange(0, 64, layout=gl.SliceLayout(1, SCORES))
    gl.store(sum_ptr + GROUP * 64 + row, sums)


@gluon.jit
def sum_of_exponentials(
    q_desc, k_desc, sum_ptr, tiles, UNDER_THE_PRODUCT: gl.constexpr, REGISTERS: gl.constexpr
):
    queries = gl.allocate_shared_memory(q_desc.dtype, [2, 64, 64], q_desc.layout)
    keys = gl.allocate_shared_memory(k_desc.dtype, [64, 64], k_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(full, count=1)
    mbarrier.init(empty, count=2)
    gl.warp_specialize(
        [
            (consume, (queries, keys, full, empty, sum_ptr, tiles, gl.constexpr(0),
                       UNDER_THE_PRODUCT)),
            (consume, (queries, keys, full, empty, sum_ptr, tiles, gl.constexpr(1),
                       UNDER_THE_PRODUCT)),
            (produce, (q_desc, k_desc, queries, keys, full, empty, tiles)),
        ],
        [4, 1],
        [REGISTERS, 24],
    )  # fmt: skip


def compilation(under_the_product: bool = True, registers: int = REGISTERS[0]) -> Compilation:
    """It, with what its warp groups are to take and what its design promises."""
    block = gluon_descriptor_type("bf16", ROWS, HEAD_DIM)
    return Compilation(
        kernel=sum_of_exponentials,
        configuration="under the product" if under_the_product else "after the product",
        arguments={
            "q_desc": block,
            "k_desc": block,
            "sum_ptr": "*fp32",
            "tiles": "i32",
            "UNDER_THE_PRODUCT": under_the_product,
            "REGISTERS": registers,
        },
        num_warps=4,
        num_stages=1,
        warp_groups=WarpGroups(168, REGISTERS, exponentials_in_flight=True),
    )
