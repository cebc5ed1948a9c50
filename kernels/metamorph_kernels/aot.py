"""`python -m metamorph_kernels.aot`: compile every Triton kernel without a GPU, show what it uses.

Fails where a shipped configuration spills registers it has not declared, needs more shared memory
than a Hopper block may use, or computes matrix products without wgmma.
"""

import argparse
import itertools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from metamorph_kernels.compilation import Compilation

MOST_SHARED_BYTES = 232_448  # 227 KiB: what one block may use on sm_90
PROCESSOR_SHARED_BYTES = 233_472  # 228 KiB, of which each block takes
RESERVED_SHARED_BYTES = 1024  # for the system
PROCESSOR_REGISTERS = 65_536
REGISTER_UNIT = 8  # of a thread
WARP_SIZE = 32


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel uses: registers a thread, bytes a thread and a block."""

    registers: int
    stack: int
    shared: int
    wgmma: bool
    tma: bool


def compilations() -> Iterator[Compilation]:
    """Every kernel of the package in every shipped configuration."""
    from metamorph_kernels import (
        attention_fp8_triton,
        attention_triton,
        cosine_triton,
        cross_entropy_triton,
        decode_triton,
        float8_heads_triton,
        float8_triton,
        mlp_triton,
        pooling_triton,
        quantise_triton,
    )

    for module in (
        attention_triton,
        attention_fp8_triton,
        decode_triton,
        cosine_triton,
        cross_entropy_triton,
        mlp_triton,
        pooling_triton,
        quantise_triton,
        float8_heads_triton,
        float8_triton,
    ):
        yield from module.compilations()


def compile_ahead(compilation: Compilation, capability: int) -> Resources:
    """The resources of one kernel compiled for `sm_<capability>`; no GPU or driver is needed.

    An integer whose type ends in ":16" is taken for a multiple of 16, which Triton finds out for
    itself at run time; so is every pointer, because PyTorch's allocations are aligned.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    arguments = compilation.arguments
    types = {name: isinstance(value, str) for name, value in arguments.items()}
    source = ASTSource(
        fn=compilation.kernel,
        signature={
            name: value.removesuffix(":16") if types[name] else "constexpr"
            for name, value in arguments.items()
        },
        constexprs={name: value for name, value in arguments.items() if not types[name]},
        attrs={
            (index,): [["tt.divisibility", 16]]
            for index, value in enumerate(arguments.values())
            if isinstance(value, str) and (value.startswith("*") or value.endswith(":16"))
        },
    )
    options = {"num_warps": compilation.num_warps, "num_stages": compilation.num_stages}
    target = GPUTarget("cuda", capability, WARP_SIZE)
    compiled = triton.compile(source, target=target, options=options)
    registers, stack = _resource_usage(compiled.asm["cubin"], Path(triton.__file__).parent)
    assembly = compiled.asm["ptx"]
    return Resources(
        registers=registers,
        stack=stack,
        shared=compiled.metadata.shared,
        wgmma="wgmma.mma_async" in assembly,
        tma="cp.async.bulk.tensor" in assembly,
    )


def faults(compilation: Compilation, resources: Resources) -> list[str]:
    """What of `resources` a shipped configuration must not have; empty if all is well."""
    found = []
    if resources.stack > compilation.stack_bytes:
        found.append(f"spills {resources.stack} bytes, {compilation.stack_bytes} declared")
    if resources.shared > MOST_SHARED_BYTES:
        found.append(f"needs {resources.shared} bytes of shared memory")
    elif fitting(compilation, resources) < compilation.residents:
        found.append(f"fewer than {compilation.residents} blocks fit a processor")
    if compilation.tensor_cores and not resources.wgmma:
        found.append("matrix product without wgmma")
    return found


def fitting(compilation: Compilation, resources: Resources) -> int:
    """How many blocks fit one processor at a time."""
    registers = -(-resources.registers // REGISTER_UNIT) * REGISTER_UNIT
    return min(
        PROCESSOR_SHARED_BYTES // (resources.shared + RESERVED_SHARED_BYTES),
        PROCESSOR_REGISTERS // (registers * compilation.num_warps * WARP_SIZE),
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 if any configuration has a fault."""
    parser = argparse.ArgumentParser(
        prog="python -m metamorph_kernels.aot",
        description="Compile every Triton kernel in every shipped configuration, without a GPU, "
        "and print what each uses. Exits with 1 if one spills registers, needs too much shared "
        "memory, leaves no room for a second block that is to share its processor, or computes a "
        "matrix product without wgmma.",
    )
    parser.add_argument(
        "--arch", default="sm_90", help="the architecture to compile for (default: sm_90)"
    )
    parser.add_argument(
        "--kernel", default="", metavar="TEXT", help="only kernels whose name contains TEXT"
    )
    options = parser.parse_args(arguments)
    architecture = re.fullmatch(r"sm_(\d+)a?", options.arch)
    if architecture is None:
        parser.error(f"--arch: expected a name like sm_90, got {options.arch!r}")

    numbered = {
        number: case
        for number, case in enumerate(compilations())
        if options.kernel in case.kernel.__name__
    }
    chosen = numbered.values()
    if not chosen:
        parser.error(f"--kernel: no kernel has {options.kernel!r} in its name")
    capability = int(architecture[1])
    width = max(len(case.kernel.__name__) for case in chosen)
    wide = max(len(case.configuration) for case in chosen)
    print(
        f"{'kernel':{width}}  {'configuration':{wide}}  warps stages registers stack  shared"
        "  wgmma TMA"
    )
    failures = 0
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(_compile_numbered, numbered, [capability] * len(numbered))
        for case, used in zip(chosen, results, strict=True):
            remarks = faults(case, used)
            failures += bool(remarks)
            if used.stack and not remarks:
                remarks = [f"declared: {case.reason}"]
            wgmma, tma = ("yes" if feature else "no" for feature in (used.wgmma, used.tma))
            print(
                f"{case.kernel.__name__:{width}}  {case.configuration:{wide}}  "
                f"{case.num_warps:5} {case.num_stages:6} {used.registers:9} {used.stack:5} "
                f"{used.shared:7}  {wgmma:5} {tma:3}  {'; '.join(remarks)}".rstrip(),
                flush=True,
            )
    verdict = "all fit" if not failures else f"{failures} do not fit"
    print(f"{len(chosen)} configurations for {options.arch}: {verdict}")
    return 1 if failures else 0


def _compile_numbered(number: int, capability: int) -> Resources:
    """`compile_ahead` of one of `compilations()`: a kernel cannot be sent to another process."""
    return compile_ahead(next(itertools.islice(compilations(), number, None)), capability)


def _resource_usage(binary: bytes, triton_folder: Path) -> tuple[int, int]:
    """Registers and stack bytes of a thread, read by the cuobjdump in Triton's wheel."""
    tool = triton_folder / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        done = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        )
    usage = re.search(r"REG:(\d+) STACK:(\d+)", done.stdout)
    if usage is None:
        raise RuntimeError(f"{tool} printed no resource usage: {done.stdout!r}")
    return int(usage[1]), int(usage[2])


if __name__ == "__main__":
    sys.exit(main())
