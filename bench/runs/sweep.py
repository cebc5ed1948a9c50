"""`python -m bench.runs.sweep KERNEL`: other tile sizes of a kernel beside those it ships with.

Each is compiled ahead of time first; one that spills, overflows shared memory or loses wgmma is a
line with that reason and is not run. The others must give what the shipped tiles give, and are
then timed in turn. Without a GPU the table ends at the compiler's figures, and what a model makes
of them.
"""

import argparse
import math
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import product
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bench.harness.comparison import Comparison
from bench.harness.limits import measure_limits
from bench.harness.machine import machine
from bench.harness.results import Result
from bench.harness.timing import Candidate
from bench.harness.verification import relative_error
from bench.ops import attention, decode, prefill
from bench.reports.tables import text
from metamorph_kernels import (
    aot,
    decode_attention,
    interval_attention,
    interval_attention_fp8,
    prefill_attention,
)
from metamorph_kernels.aot import speed
from metamorph_kernels.attention import (
    decode_triton,
    fp8_triton,
    interval_triton,
    prefill_triton,
    tiles_gluon,
)
from metamorph_kernels.attention.interval_triton import Tiles

GLUON = "gluon_"  # before the direction of a kernel of `impl="gluon"`
KERNELS = (
    *("forward", "query_gradient", "key_value_gradient", "fp8", "decode", "prefill"),
    *dict.fromkeys(f"{GLUON}{direction}" for direction, _ in tiles_gluon.GLUON_TILES),
)
SHIPPED = "ours, shipped"
BLOCKS, WARPS, STAGES = (32, 64, 128, 256), (4, 8), (2, 3, 4)
SMALLEST_TILE, LARGEST_TILE = 4096, 32768  # elements of the scores
HEAD_DIMS = (128, 64)
GROUP = 4  # 32 query heads on 8 key heads
BOUND = 1e-2  # other tiles sum in another order, and round bfloat16 elsewhere
Change = dict[str, Any]  # module attributes and what they are for one candidate


def module_of(kernel: str) -> ModuleType:
    """Where the tiles of a kernel stand."""
    others = {"fp8": fp8_triton, "decode": decode_triton, "prefill": prefill_triton}
    return tiles_gluon if kernel.startswith(GLUON) else others.get(kernel, interval_triton)


def changes(kernel: str, head_dim: int) -> dict[str, Change]:
    """By name, each candidate as what it puts in place of attributes of the module."""
    if kernel == "decode":
        return {
            f"{keys} keys, {warps} warps, {stages} stages, {programs} programs": {
                "BLOCK_N": {**decode_triton.BLOCK_N, 2: keys},
                "NUM_WARPS": warps,
                "NUM_STAGES": stages,
                "PROGRAMS_PER_SM": programs,
            }
            for keys, warps, stages, programs in product((32, 64, 128), WARPS, STAGES, (2, 4, 8))
        }
    if kernel.startswith(GLUON):
        place = kernel.removeprefix(GLUON), head_dim
        return {
            f"{tiles.block} a block, {tiles.stages} stages{', in turns' * tiles.take_turns}": {
                "GLUON_TILES": {**tiles_gluon.GLUON_TILES, place: tiles}
            }
            for tiles in (tiles_gluon.GLUON_TILES[place], *tiles_gluon.RUNNERS_UP[place])
        }
    shipped = module_of(kernel).TILES
    key = head_dim if kernel in ("fp8", "prefill") else (kernel, head_dim)
    return {
        f"{m}x{n}, {warps} warps, {stages} stages": {
            "TILES": {**shipped, key: Tiles(m, n, num_warps=warps, num_stages=stages)}
        }
        for m, n, warps, stages in product(BLOCKS, BLOCKS, WARPS, STAGES)
        if SMALLEST_TILE <= m * n <= LARGEST_TILE
    }


@contextmanager
def changed(module: ModuleType, change: Change) -> Iterator[None]:
    """The module with other values, until the end of the block."""
    before = {name: getattr(module, name) for name in change}
    try:
        for name, value in change.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def title(kernel: str, head_dim: int) -> str:
    """What its table is called."""
    return f"{kernel}, head dim {head_dim}"


def function_of(kernel: str) -> str:
    """The name of a kernel's function."""
    if kernel.startswith(GLUON):
        return f"attention_{kernel.removeprefix(GLUON)}_gluon"
    others = {
        "fp8": "attention_forward_fp8",
        "decode": "decode_split",
        "prefill": "prefill_forward",
    }
    return others.get(kernel, f"attention_{kernel}")


def compiled(kernel: str, head_dim: int, change: Change) -> tuple[str, bool]:
    """What a candidate uses when compiled for Hopper, or why it is no good; and is it good?"""
    function = function_of(kernel)
    with changed(module_of(kernel), change):
        [compilation] = (
            compilation
            for compilation in aot.compilations()
            if compilation.kernel.__name__ == function
            and compilation.configuration.startswith("bf16")
            and compilation.arguments["HEAD_DIM"] == head_dim
            and compilation.arguments.get("GROUP", GROUP) == GROUP
            and not compilation.arguments.get("CAUSAL", False)
        )
        try:
            used = aot.compile_ahead(compilation, capability=90)
        except Exception as error:  # Triton refuses in many ways
            return f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"[:200], False
    faults = aot.faults(compilation, used)
    if faults:
        return "; ".join(faults), False
    # Of seven products in the two passes of the backward, five are needed.
    entry = speed.Entry(
        function, "", reads_hbm=kernel == "decode", useful=5 / 7 if "gradient" in kernel else 1.0
    )
    registers = " and ".join(map(str, used.taken or (used.registers,)))
    return (
        f"{registers} registers, {used.shared} bytes shared, "
        f"{speed.stretch_of(used).instructions} instructions a step, "
        f"{speed.clocks(entry, compilation, used).bound} binds: "
        f"{speed.expected(entry, compilation, used)} (model)"
    ), True


def _calls(kernel: str, head_dim: int, device: torch.device) -> tuple:
    """run, and arguments(repeat), as `Candidate` takes them; gradients are timed together."""
    if kernel == "decode":
        inputs = decode.Case("sweep", (8192,) * 32, head_dim).inputs(device, seed=0)
        return partial(decode_attention, impl="triton"), lambda _: inputs
    if kernel == "prefill":
        chunks = prefill.Case("sweep", (8192,) * 8, 512, head_dim)
        inputs = chunks.inputs(device, seed=0)
        return partial(prefill_attention, row=chunks.row(device), impl="triton"), lambda _: inputs
    case = attention.Case("spans", 8192, head_dim)
    row = attention.packed_row(case.tokens, case.mask)
    intervals = row.intervals(device)
    inputs = attention.Inputs.random(case, device, seed=0)
    impl = "gluon" if kernel.startswith(GLUON) else "triton"
    attend = partial(interval_attention, intervals=intervals, impl=impl)
    if kernel.removeprefix(GLUON) == "forward":
        return attend, lambda _: inputs.leaves
    if kernel == "fp8":
        attend = partial(interval_attention_fp8, intervals=intervals, impl="triton")
        leaves = tuple(leaf.detach() for leaf in inputs.leaves)
        return attend, lambda _: leaves
    return torch.autograd.grad, lambda _: (
        attend(*inputs.leaves),
        inputs.leaves,
        inputs.out_gradient,
    )


def _error(result: Tensor | tuple[Tensor, ...], shipped: Tensor | tuple[Tensor, ...]) -> float:
    pairs = zip(*((x,) if isinstance(x, Tensor) else x for x in (result, shipped)), strict=True)
    return torch.tensor([relative_error(one, other) for one, other in pairs]).max().item()


def timings(
    kernel: str, head_dim: int, chosen: dict[str, Change], device: torch.device
) -> list[Result]:
    """The shipped tiles and each chosen change, fastest first."""
    run, arguments = _calls(kernel, head_dim, device)
    shipped = run(*arguments(0))

    def run_changed(change: Change, *values):
        with changed(module_of(kernel), change):
            return run(*values)

    def candidate(change: Change) -> Candidate:
        run_this = partial(run_changed, change)
        return Candidate(run_this, arguments, _error(run_this(*arguments(0)), shipped), BOUND)

    comparison = Comparison("sweep", title(kernel, head_dim))
    for name, change in {SHIPPED: {}, **chosen}.items():
        comparison.add(name, partial(candidate, change))
    return sorted(
        comparison.results(device),
        key=lambda result: result.timing.milliseconds if result.timing else math.inf,
    )


def main(arguments: list[str] | None = None) -> None:
    """Print the table of one kernel."""
    parser = argparse.ArgumentParser(prog="python -m bench.runs.sweep")
    parser.add_argument("kernel", choices=KERNELS)
    parser.add_argument("--head-dim", type=int, choices=HEAD_DIMS, default=HEAD_DIMS[0])
    options = parser.parse_args(arguments)
    kernel, head_dim = options.kernel, options.head_dim
    found = changes(kernel, head_dim)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        outcomes = pool.map(partial(compiled, kernel, head_dim), found.values())
        verdicts = dict(zip(found, outcomes, strict=True))
    lines = [
        Result("sweep", title(kernel, head_dim), name, "ok" if good else "failed", words)
        for name, (words, good) in verdicts.items()
    ]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    record = {"machine": machine(device), "results": lines}
    if device.type == "cuda":
        record["limits"] = asdict(measure_limits(device))
        chosen = {name: change for name, change in found.items() if verdicts[name][1]}
        refused = [line for line in lines if line.status == "failed"]
        record["results"] = timings(kernel, head_dim, chosen, device) + refused
    print(text({kernel: record}))


if __name__ == "__main__":
    main()
