"""What both gradient kernels in Gluon share: the weights of a block once more.

A block is what the producer sends at a time, and the columns of the scores of both consumers. Most
blocks are seen by all rows of a tile; the producer says where the others begin, and only of those
the consumers look up what is hidden.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from metamorph_kernels.attention.pipeline_gluon import put_number

NOTHING_HIDDEN = gl.constexpr(-1)  # in place of where a block begins


@gluon.jit
def new_columns(COLUMNS: gl.constexpr):
    """0 to COLUMNS - 1, int32 in shared memory. In registers the compiler would keep them for the
    whole kernel, and sums leave too few."""
    columns = gl.allocate_shared_memory(
        gl.int32, [COLUMNS], gl.SwizzledSharedLayout(1, 1, 1, order=[0])
    )
    columns.store(gl.arange(0, COLUMNS, layout=gl.BlockedLayout([1], [32], [4], [0])))
    return columns


@gluon.jit
def put_block(block_firsts, slot, first, BLOCK: gl.constexpr, full_start, full_stop):
    """Where a block begins, for consumers all of whose rows see [full_start, full_stop)."""
    is_seen = (first >= full_start) & (first + BLOCK <= full_stop)
    put_number(block_firsts, slot, gl.where(is_seen, NOTHING_HIDDEN, first))


@gluon.jit
def weights_of(scores, lse_log2, first, columns, start, stop, scale_log2, SCORES: gl.constexpr):
    """Weights of scores [64, BLOCK], 0 where a row, which sees [start, stop), does not see a
    column. lse_log2 is [64, 1] or [1, BLOCK]."""
    weights = gl.exp2(scores * scale_log2 - lse_log2)
    if first != NOTHING_HIDDEN:
        column = first + columns.load(gl.SliceLayout(0, SCORES))[None, :]
        visible = (column >= start[:, None]) & (column < stop[:, None])
        weights = gl.where(visible, weights, 0.0)
    return weights


@gluon.jit
def transposed(slots, slot, BLOCK: gl.constexpr, HEAD_DIM: gl.constexpr):
    """The block of a slot, [1, BLOCK, HEAD_DIM], as a product wants it: [HEAD_DIM, BLOCK]."""
    return slots.index(slot).reshape([BLOCK, HEAD_DIM]).permute([1, 0])
