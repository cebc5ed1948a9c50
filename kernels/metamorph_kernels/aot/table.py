"""The command: a row for every kernel in every shipped configuration."""

import argparse
import importlib.util
import itertools
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from metamorph_kernels.aot.building import (
    Binary,
    CompileError,
    Resources,
    build,
    compilations,
    examine,
)
from metamorph_kernels.aot.judging import faults
from metamorph_kernels.architectures import MOST_SHARED_BYTES, capability
from metamorph_kernels.compilation import Compilation

DESCRIPTION = """\
Compile every Triton kernel in every shipped configuration, without a GPU, and print what each uses.

Exits with 1 if one does not compile, spills registers, needs too much shared memory, leaves no room
for a second block that is to share its SM, or computes a matrix product without wgmma; and if its
machine code overwrites the register operand of a product in a loop, or touches registers that a
product in flight uses; and if ptxas says that it gave up speed, as where it lets products wait for
each other. Of a warp-specialised kernel also where its warp groups take other registers than it
says, or use more, and where no exp2 is under a product in flight though it says so.

Columns: registers of a thread; bytes of stack of a thread and of shared memory of a block; widest
access to global memory in bits; then for one pass through the innermost loop (or, with a star, for
the whole kernel) instructions and barriers, and how much of its float32 arithmetic is issued while
a product is in flight ("at once": next to none, because the wait comes right after the product);
then how many exp2 of the pass are surely under a product in flight, at which addresses, and under
the products at which, for each partition of the block with products.
"""
BATCH = 16  # kernels that one process compiles, and has disassembled, at a time


@dataclass(frozen=True)
class Row:
    """One kernel for one architecture; `number` counts `compilations()`."""

    number: int
    compilation: Compilation
    architecture: str

    @property
    def key(self) -> tuple[int, str]:
        """What can be sent to another process, as a kernel cannot."""
        return self.number, self.architecture

    def words(self, used: Resources | str) -> str:
        """The cells of the row, all but the names, or why there are none."""
        if isinstance(used, str):
            return f"does not compile: {used}"
        remarks = faults(self.compilation, used, self.architecture)
        wgmma, tma = ("yes" if feature else "no" for feature in (used.wgmma, used.tma))
        return (
            f"{used.warps:5} {self.compilation.num_stages:6} {used.registers:9} "
            f"{used.stack:5} {used.shared:7}  {wgmma:5} {tma:3}  {used.loads!s:7} "
            f"{used.stores!s:7} {_pass(used)} {_exponentials(used):14}  {'; '.join(remarks)}"
        )


def _pass(used: Resources) -> str:
    inner = used.stretch
    if inner is None:
        return f"{'':12} {'':8} {'':10}"
    instructions = f"{inner.instructions}{'' if inner.is_loop else '*'}"
    overlap = ""
    if inner.waits_at_once:
        overlap = "at once"
    elif inner.products:
        overlap = f"{inner.overlapped} of {inner.arithmetic}" if inner.arithmetic else "products"
    return f"{instructions:>12} {inner.barriers:8} {overlap:10}"


def _exponentials(used: Resources) -> str:
    return ", ".join(map(str, used.exponentials))


HEADER = (
    "warps stages registers stack  shared  wgmma TMA  load    store   instructions barriers "
    "overlap    exp2 in flight"
)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 if any configuration has a fault, 2 if it cannot be made."""
    options = _options(arguments)
    if importlib.util.find_spec("triton") is None:
        print("triton is not installed: without it no kernel can be compiled", file=sys.stderr)
        return 2
    rows = [
        Row(number, case, architecture)
        for number, case in enumerate(compilations())
        for architecture in ([options.arch] if options.arch else case.architectures)
        if options.kernel in case.kernel.__name__
        and options.configuration in case.configuration
        and (case.tensor_cores or not options.matrix)
    ]
    if not rows:
        print(
            f"no kernel with {options.kernel!r} in its name has a configuration with "
            f"{options.configuration!r}{' and matrix products' * options.matrix}",
            file=sys.stderr,
        )
        return 2
    name = max(len(row.compilation.kernel.__name__) for row in rows)
    configuration = max(len("configuration"), *(len(row.compilation.configuration) for row in rows))
    print(f"{'kernel':{name}}  {'configuration':{configuration}}  arch    {HEADER}")
    failures = 0
    for row, outcome in zip(rows, _results(rows), strict=True):
        case = row.compilation
        print(
            f"{case.kernel.__name__:{name}}  {case.configuration:{configuration}}  "
            f"{row.architecture:6} {row.words(outcome)}".rstrip(),
            flush=True,
        )
        failures += isinstance(outcome, str) or bool(faults(case, outcome, row.architecture))
    verdict = "all fit" if not failures else f"{failures} do not fit"
    used = {row.architecture for row in rows}
    architectures = [name for name in MOST_SHARED_BYTES if name in used]
    print(
        f"{len(rows)} configurations for {', '.join(architectures)}: {verdict} "
        f"({_compilers(architectures)})"
    )
    return 1 if failures else 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m metamorph_kernels.aot",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--arch",
        choices=MOST_SHARED_BYTES,
        help="compile all of them for this architecture (default: each for those it is meant for)",
    )
    parser.add_argument(
        "--kernel", default="", metavar="TEXT", help="only kernels whose name contains TEXT"
    )
    parser.add_argument(
        "--configuration",
        default="",
        metavar="TEXT",
        help="only configurations whose name contains TEXT, such as bf16",
    )
    parser.add_argument(
        "--matrix",
        action="store_true",
        help="only kernels with matrix products on tensor cores: what another compiler can break",
    )
    return parser.parse_args(arguments)


def _results(rows: list[Row]) -> Iterator[Resources | str]:
    """Of each row, what it uses or why it does not compile."""
    keys = [row.key for row in rows]
    batches = [keys[first : first + BATCH] for first in range(0, len(keys), BATCH)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for results in pool.map(_batch, batches):
            yield from results


def _batch(keys: list[tuple[int, str]]) -> list[Resources | str]:
    wanted = {number for number, _ in keys}
    cases = {
        number: case
        for number, case in enumerate(itertools.islice(compilations(), max(wanted) + 1))
        if number in wanted
    }
    built = {key: _built(cases[key[0]], key[1]) for key in keys}
    binaries = {key: binary for key, binary in built.items() if isinstance(binary, Binary)}
    results = {key: refusal for key, refusal in built.items() if isinstance(refusal, str)}
    examined: dict[tuple[int, str], Resources] = {}
    for architecture in {architecture for _, architecture in binaries}:
        chosen = [key for key in binaries if key[1] == architecture]
        found = examine([binaries[key] for key in chosen], capability(architecture))
        examined.update(zip(chosen, found, strict=True))
    return [results[key] if key in results else examined[key] for key in keys]


def _built(case: Compilation, architecture: str) -> Binary | str:
    try:
        return build(case, capability(architecture))
    except CompileError as error:
        return str(error)


def _compilers(architectures: list[str]) -> str:
    """Triton and ptxas by version; Blackwell has a ptxas of its own."""
    import triton
    from triton.backends.nvidia.compiler import get_ptxas_version

    texts = [get_ptxas_version(capability(architecture)) for architecture in architectures]
    versions = dict.fromkeys(re.findall(r"\bV(\d[\d.]*)", "\n".join(texts)))
    return f"Triton {triton.__version__}, ptxas {' and '.join(versions)}"
