"""Tiles of keys and the queries that see them, for kernels in Gluon.

A tile is 128 keys of one head; each of two consumers has half of them.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def query_bounds(bounds, first, tokens, CAUSAL: gl.constexpr):
    """Of a tile from key `first` on: the queries [start, stop) that see any of it, and [full_start,
    full_stop) that see all. Bounds never decrease: the first and last key's do."""
    col_start_ptr, col_end_ptr = bounds
    last = gl.minimum(first + 128, tokens) - 1
    stop = gl.load(col_end_ptr + last)
    full_stop = gl.load(col_end_ptr + first)
    if CAUSAL:
        start = first
        full_start = last
    else:
        start = gl.load(col_start_ptr + first)
        full_start = gl.load(col_start_ptr + last)
    return start, stop, full_start, full_stop
