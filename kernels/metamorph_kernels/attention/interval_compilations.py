"""What the ahead-of-time checker compiles of interval attention."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import triton

from metamorph_kernels.attention import interval_triton
from metamorph_kernels.attention.backward import (
    attention_key_value_gradient,
    attention_query_gradient,
)
from metamorph_kernels.attention.forward import attention_forward
from metamorph_kernels.attention.launch_triton import packed_heads
from metamorph_kernels.compilation import Compilation, descriptor_type

KERNELS = {  # by direction
    "forward": attention_forward,
    "query_gradient": attention_query_gradient,
    "key_value_gradient": attention_key_value_gradient,
}
SCALARS = {"tokens": "i32", "statistic_stride": "i32", "scale": "fp32"}
BOUNDS = ("row_start_ptr", "row_end_ptr", "col_start_ptr", "col_end_ptr")
INTEGERS = (*BOUNDS, "work_ptr", "poisoned_ptr")


@dataclass(frozen=True)
class Case:
    """What decides the code of a kernel; `group` query heads share a key head.

    `one_key_head`: Triton takes an integer argument that is 1 for a constant.
    """

    direction: str
    element: str
    head_dim: int
    causal: bool
    group: int
    one_key_head: bool = False


def compilations() -> Iterator[Compilation]:
    """Every kernel with every head dim and group, and every tile with every dtype and mask.

    Groups above 8 and those that are no power of two have the tiles of their packed heads.
    """
    for case in _cases():
        yield _compilation(case)


def _cases() -> Iterator[Case]:
    for direction in KERNELS:
        # Keys are not packed: the group is how often their kernel's loop goes over the queries.
        groups = (1,) if direction == "key_value_gradient" else (1, 2, 4, 8)
        elements = ("bf16", "fp16", "fp32")
        for head_dim, element, causal, group in product((64, 128), elements, (True, False), groups):
            yield Case(direction, element, head_dim, causal, group)
        # Computed as 128, with masked loads.
        for head_dim, (causal, group) in product((80, 96), ((True, 1), (True, 4), (False, 4))):
            yield Case(direction, "bf16", head_dim, causal, group)
        yield Case(direction, "bf16", 128, causal=True, group=3)
        yield Case(direction, "bf16", 128, causal=True, group=8, one_key_head=True)
    for head_dim, group in product((64, 128), (4, 8)):
        yield Case("key_value_gradient", "bf16", head_dim, causal=True, group=group)
    for head_dim in (64, 128):
        yield Case("key_value_gradient", "bf16", head_dim, causal=False, group=4)


def _compilation(case: Case) -> Compilation:
    kernel = KERNELS[case.direction]
    block_d = triton.next_power_of_2(case.head_dim)
    tiles = interval_triton.TILES[case.direction, block_d]
    if case.element == "fp32":
        tiles = interval_triton.FLOAT32_TILES
    pack = packed_heads(case.group)
    constants = {
        "HEAD_DIM": case.head_dim,
        "GROUP": case.group,
        "PACK": pack,
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "BLOCK_D": block_d,
        "CAUSAL": case.causal,
    }
    known = constants | SCALARS | {"key_heads": 1 if case.one_key_head else "i32"}
    query_heads = 1 if case.direction == "key_value_gradient" else pack
    query_block = descriptor_type(case.element, query_heads, tiles.block_m // query_heads, block_d)
    key_block = descriptor_type(case.element, 1, tiles.block_n, block_d)

    def argument(name: str):
        if name in known:
            return known[name]
        if name in ("lse_log2_desc", "delta_desc"):
            return descriptor_type("fp32", 1, tiles.block_m)
        if name.endswith("_desc"):
            return key_block if name[0] in "kv" else query_block
        if "_stride_" in name:
            return "i32:16"
        if name in ("q_ptr", "k_ptr", "v_ptr", "out_ptr", "out_gradient_ptr"):
            return f"*{case.element}"
        return "*i32" if name in INTEGERS else "*fp32"

    words = (
        case.element,
        f"D={case.head_dim}",
        "causal" if case.causal else "spans",
        f"group {case.group}{' of one key head' if case.one_key_head else ''}",
        f"{tiles.block_m}x{tiles.block_n}",
    )
    return Compilation(
        kernel=kernel,
        configuration=" ".join(words),
        arguments={name: argument(name) for name in kernel.arg_names},
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        tensor_cores=case.element != "fp32",
    )
