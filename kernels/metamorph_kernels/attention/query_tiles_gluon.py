"""Tiles of queries on their way from the producer to two consumers, for kernels in Gluon.

A tile is 128 rows: PACK heads that share their key head times 128 / PACK tokens; each consumer has
half of the tokens. The producer sends the number of the tile and the bounds of its keys beside it.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from metamorph_kernels.attention.pipeline_gluon import get_number, put_number

QUEUE = gl.constexpr(2)  # tiles that are in shared memory
NUMBERS = gl.constexpr(7)  # of a tile: work, start, stop, full_start and full_stop of each half
NO_MORE = gl.constexpr(-1)  # in place of work


@gluon.jit
def new_tile_numbers():
    """Room for the numbers of the tiles of a queue, int32."""
    return gl.allocate_shared_memory(
        gl.int32, [QUEUE * NUMBERS, 1], gl.SwizzledSharedLayout(1, 1, 1, order=[0])
    )


@gluon.jit
def first_token(work, tokens, key_heads, GROUP: gl.constexpr, PACK: gl.constexpr):
    """Of a tile. Late tokens see most keys: the longest tiles come first, short ones fill gaps."""
    SPAN: gl.constexpr = 128 // PACK
    head_blocks = key_heads * (GROUP // PACK)
    return (gl.cdiv(tokens, SPAN) - 1 - work // head_blocks) * SPAN


@gluon.jit
def tile_bounds(
    row_start_ptr, row_end_ptr, first, SPAN: gl.constexpr, tokens, CAUSAL: gl.constexpr
):
    """Of SPAN tokens from `first` on, or as many as there are: [start, stop) that any of them sees,
    and [full_start, full_stop) that all do. Bounds never decrease: the first and last token's do.
    """
    first = gl.minimum(first, tokens - 1)
    last = gl.minimum(first + SPAN, tokens) - 1
    start = gl.load(row_start_ptr + first)
    full_start = gl.load(row_start_ptr + last)
    if CAUSAL:
        stop = last + 1
        full_stop = first + 1
    else:
        stop = gl.load(row_end_ptr + last)
        full_stop = gl.load(row_end_ptr + first)
    return start, stop, full_start, full_stop


@gluon.jit
def put_tile(
    tile_numbers, queue, work, first, row_start_ptr, row_end_ptr, tokens, PACK: gl.constexpr,
    CAUSAL: gl.constexpr,
):  # fmt: skip
    """The producer's numbers of a tile; returns its keys [start, stop)."""
    HALF: gl.constexpr = 64 // PACK
    start, stop, _, _ = tile_bounds(row_start_ptr, row_end_ptr, first, 2 * HALF, tokens, CAUSAL)
    put_number(tile_numbers, queue * NUMBERS, work)
    put_number(tile_numbers, queue * NUMBERS + 1, start)
    put_number(tile_numbers, queue * NUMBERS + 2, stop)
    for half in gl.static_range(2):
        _, _, full_start, full_stop = tile_bounds(
            row_start_ptr, row_end_ptr, first + half * HALF, HALF, tokens, CAUSAL
        )
        put_number(tile_numbers, queue * NUMBERS + 3 + 2 * half, full_start)
        put_number(tile_numbers, queue * NUMBERS + 4 + 2 * half, full_stop)
    return start, stop


@gluon.jit
def put_no_more(tile_numbers, queue):
    for place in gl.static_range(NUMBERS):
        put_number(tile_numbers, queue * NUMBERS + place, NO_MORE)


@gluon.jit
def get_tile(
    tile_numbers, queue, row_start_ptr, row_end_ptr, tokens, key_heads, HALF_NUMBER: gl.constexpr,
    GROUP: gl.constexpr, PACK: gl.constexpr, CAUSAL: gl.constexpr, ROWS: gl.constexpr,
):  # fmt: skip
    """A consumer's half of a tile: work, start, stop, full_start, full_stop, and the keys
    [row_start, row_end) of each of its rows [64] in the layout ROWS."""
    HALF: gl.constexpr = 64 // PACK
    work = get_number(tile_numbers, queue * NUMBERS)
    start = get_number(tile_numbers, queue * NUMBERS + 1)
    stop = get_number(tile_numbers, queue * NUMBERS + 2)
    full_start = get_number(tile_numbers, queue * NUMBERS + 3 + 2 * HALF_NUMBER)
    full_stop = get_number(tile_numbers, queue * NUMBERS + 4 + 2 * HALF_NUMBER)
    first = first_token(work, tokens, key_heads, GROUP, PACK) + HALF_NUMBER * HALF
    token = first + gl.arange(0, 64, layout=ROWS) % HALF
    # Rows past the last token repeat it. Where there is no more work, these are bounds of nobody.
    known = gl.maximum(gl.minimum(token, tokens - 1), 0)
    row_start = gl.load(row_start_ptr + known)
    if CAUSAL:
        row_end = known + 1
    else:
        row_end = gl.load(row_end_ptr + known)
    return work, start, stop, full_start, full_stop, row_start, row_end
