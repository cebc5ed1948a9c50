"""What the ahead-of-time checker compiles of interval attention in Gluon."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from metamorph_kernels.attention import tiles_gluon
from metamorph_kernels.attention.forward_gluon import attention_forward_gluon
from metamorph_kernels.attention.key_value_gradient_gluon import (
    attention_key_value_gradient_gluon,
)
from metamorph_kernels.attention.query_gradient_gluon import attention_query_gradient_gluon
from metamorph_kernels.attention.repair_triton import (
    FLAGS,
    repair_forward,
    repair_key_value_gradient,
    repair_query_gradient,
)
from metamorph_kernels.attention.tile_order_triton import RANKED, rank_key_tiles
from metamorph_kernels.attention.tiles_gluon import LAUNCH_REGISTERS, ROWS, WARPS
from metamorph_kernels.compilation import Compilation, WarpGroups, gluon_descriptor_type

KERNELS = {  # by direction
    "forward": attention_forward_gluon,
    "query_gradient": attention_query_gradient_gluon,
    "key_value_gradient": attention_key_value_gradient_gluon,
}
REPAIRS = {  # in Triton
    "forward": repair_forward,
    "query_gradient": repair_query_gradient,
    "key_value_gradient": repair_key_value_gradient,
}
SCALARS = {
    **dict.fromkeys(("tokens", "count", "statistic_stride", "key_heads", "group"), "i32"),
    "scale": "fp32",
}
BOUNDS = ("row_start_ptr", "row_end_ptr", "col_start_ptr", "col_end_ptr")
INTEGERS = (*BOUNDS, "order_ptr", "work_ptr", "poisoned_ptr")


@dataclass(frozen=True)
class Case:
    """What decides the code of a kernel; `pack` of the `group` heads of a key head share a tile."""

    direction: str
    element: str
    head_dim: int
    causal: bool
    group: int
    pack: int


def compilations() -> Iterator[Compilation]:
    """Every kernel with every head dim, mask and number of packed heads, and every dtype."""
    for case in _cases():
        yield _compilation(case)
    for direction, (head_dim, group) in product(REPAIRS, ((64, 4), (128, 1), (128, 4))):
        yield _repair(Case(direction, "bf16", head_dim, causal=False, group=group, pack=group))
    for causal in (True, False):
        yield _order(causal)


def _cases() -> Iterator[Case]:
    for head_dim, causal in product((64, 128), (True, False)):
        for direction in ("forward", "query_gradient"):
            for pack in (1, 2, 4, 8):
                yield Case(direction, "bf16", head_dim, causal, group=pack, pack=pack)
            yield Case(direction, "fp16", head_dim, causal, group=4, pack=4)
        for element in ("bf16", "fp16"):  # keys are not packed, and one code serves all groups
            yield Case("key_value_gradient", element, head_dim, causal, group=1, pack=1)
    for direction in ("forward", "query_gradient"):
        yield Case(direction, "bf16", 128, causal=True, group=3, pack=1)


def _compilation(case: Case) -> Compilation:
    kernel = KERNELS[case.direction]
    tiles = tiles_gluon.GLUON_TILES[case.direction, case.head_dim]
    known = SCALARS | {
        "GROUP": case.group,
        "PACK": case.pack,
        "BLOCK_N": tiles.block,
        "BLOCK_M": tiles.block,
        "HEAD_DIM": case.head_dim,
        "STAGES": tiles.stages,
        "CAUSAL": case.causal,
        "TAKE_TURNS": tiles.take_turns,
        "CONSUMER_REGISTERS": tiles.consumer_registers,
    }
    rows = (case.pack, ROWS // case.pack, case.head_dim)
    blocks = (1, tiles.block, case.head_dim)
    of_keys, of_queries = (
        (rows, blocks) if case.direction == "key_value_gradient" else (blocks, rows)
    )

    def argument(name: str):
        if name in known:
            return known[name]
        if name in ("lse_log2_desc", "delta_desc"):
            return gluon_descriptor_type("fp32", 1, tiles.block)
        if name.endswith("_desc"):
            return gluon_descriptor_type(
                case.element, *(of_keys if name[0] in "kv" else of_queries)
            )
        return "*i32" if name in INTEGERS else "*fp32"

    words = (
        case.element,
        f"D={case.head_dim}",
        "causal" if case.causal else "spans",
        *([f"group {case.group} pack {case.pack}"] if "PACK" in kernel.arg_names else []),
        f"{2 * ROWS}x{tiles.block}",
    )
    return Compilation(
        kernel=kernel,
        configuration=" ".join(words),
        arguments={name: argument(name) for name in kernel.arg_names},
        num_warps=WARPS,
        num_stages=tiles.stages,
        warp_groups=WarpGroups(
            launch_registers=LAUNCH_REGISTERS,
            registers=(*2 * (tiles.consumer_registers,), tiles.producer_registers),
            exponentials_in_flight=True,
        ),
    )


def _order(causal: bool) -> Compilation:
    """The Triton kernel that ranks tiles of keys."""
    known = {"tokens": "i32", "tiles": "i32", "TILE": 2 * ROWS, "RANKED": RANKED, "CAUSAL": causal}
    return Compilation(
        kernel=rank_key_tiles,
        configuration=f"{'causal' if causal else 'spans'} {2 * ROWS}",
        arguments={name: known.get(name, "*i32") for name in rank_key_tiles.arg_names},
        num_warps=WARPS,
        num_stages=1,
        tensor_cores=False,
    )


def _repair(case: Case) -> Compilation:
    """The Triton kernel that computes flagged tiles again."""
    kernel = REPAIRS[case.direction]
    known = SCALARS | {
        "HEAD_DIM": case.head_dim,
        "GROUP": case.group,
        "PACK": case.pack,
        "BLOCK_M": 2 * ROWS,
        "BLOCK_N": 2 * ROWS,
        "CAUSAL": case.causal,
        "FLAGS": FLAGS,
    }

    def argument(name: str):
        if name in known:
            return known[name]
        if "_stride_" in name:
            return "i32:16"
        if name in INTEGERS:
            return "*i32"
        return "*fp32" if name in ("lse_ptr", "lse_log2_ptr", "delta_ptr") else f"*{case.element}"

    mask = "causal" if case.causal else "spans"
    return Compilation(
        kernel=kernel,
        configuration=f"{case.element} D={case.head_dim} {mask} group {case.group}",
        arguments={name: argument(name) for name in kernel.arg_names},
        num_warps=2 * WARPS,
        num_stages=1,
        tensor_cores=False,
    )
