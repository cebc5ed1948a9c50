"""Kernels compiled without a GPU or a driver, and what they use."""

import contextlib
import io
import os
import re
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from metamorph_kernels.aot.assembler import compile_and_listen, losses
from metamorph_kernels.aot.control_flow import UnreadableFlow, flow_of
from metamorph_kernels.aot.dataflow import overwritten_operands
from metamorph_kernels.aot.disassembly import Instruction, disassemble
from metamorph_kernels.aot.exponentials import Exponentials, exponentials
from metamorph_kernels.aot.flight import touched_in_flight
from metamorph_kernels.aot.machine_code import Accesses, Stretch, loads, stores, stretch
from metamorph_kernels.aot.registers import PRODUCTS, UnknownMnemonic, effects
from metamorph_kernels.aot.warp_groups import beyond_what_is_held, held, taken
from metamorph_kernels.architectures import WARP_SIZE
from metamorph_kernels.compilation import Compilation


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel uses: registers a thread at its launch, bytes a thread and a block.

    `warps` are all that the block is launched with; `taken` the registers that a thread of its warp
    groups holds at products and loads by TMA, the largest first, where they hand each other some.
    `hazards` are sentences on products that the machine code gets wrong, on what ptxas says to have
    given up, or on code that cannot be read. `loads`, `stores` and `stretch` are None where it was
    not disassembled.
    """

    registers: int
    stack: int
    shared: int
    wgmma: bool
    tma: bool
    warps: int
    taken: tuple[int, ...] = ()
    hazards: tuple[str, ...] = ()
    loads: Accesses | None = None
    stores: Accesses | None = None
    stretch: Stretch | None = None
    exponentials: tuple[Exponentials, ...] = ()


@dataclass(frozen=True)
class Binary:
    """A compiled kernel: its cubin, and with how many bytes of shared memory and warps it runs.

    `losses`: what ptxas says to have given up.
    """

    cubin: bytes
    shared: int
    warps: int
    losses: tuple[str, ...] = ()


class CompileError(ValueError):
    """The compiler's reason, in one sentence."""


def compilations() -> Iterator[Compilation]:
    """Every kernel of the package in every shipped configuration."""
    from metamorph_kernels.attention import (
        decode_triton,
        fp8_heads_triton,
        fp8_triton,
        gluon_compilations,
        interval_compilations,
        prefill_triton,
    )
    from metamorph_kernels.linear import float8_triton, mlp_triton
    from metamorph_kernels.losses import cosine_compilations, cross_entropy_triton
    from metamorph_kernels.rows import pooling_triton, quantise_triton

    for module in (
        interval_compilations,
        gluon_compilations,
        fp8_triton,
        decode_triton,
        prefill_triton,
        cosine_compilations,
        cross_entropy_triton,
        mlp_triton,
        pooling_triton,
        quantise_triton,
        fp8_heads_triton,
        float8_triton,
    ):
        yield from module.compilations()


def compile_ahead(compilation: Compilation, capability: int) -> Resources:
    """The resources of one kernel compiled for `sm_<capability>`.

    CompileError where the compiler refuses it.
    """
    [resources] = examine([build(compilation, capability)], capability)
    return resources


def build(compilation: Compilation, capability: int) -> Binary:
    """The machine code of one kernel.

    An integer whose type ends in ":16" is taken for a multiple of 16, which Triton finds out for
    itself at run time; so is every pointer, because PyTorch's allocations are aligned.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    groups = compilation.warp_groups
    arguments = compilation.arguments
    types = {name: isinstance(value, str) for name, value in arguments.items()}
    source = (ASTSource if groups is None else GluonASTSource)(
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
    if groups is not None:
        options["maxnreg"] = groups.launch_registers
    target = GPUTarget("cuda", capability, WARP_SIZE)
    with tempfile.TemporaryFile(mode="w+") as file:
        try:
            with _output_to(file):
                compiled, log = compile_and_listen(source, target, options)
        except Exception as error:  # Triton refuses in many ways
            file.seek(0)
            raise CompileError(reason(f"{file.read()}\n{_cause(error)}")) from error
    metadata = compiled.metadata  # its warps are those of all partitions
    return Binary(compiled.asm["cubin"], metadata.shared, metadata.num_warps, losses(log))


def examine(binaries: list[Binary], capability: int) -> list[Resources]:
    """The resources of kernels compiled for one architecture."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    codes = disassemble([binary.cubin for binary in binaries], capability, tools)
    return [_resources(binary, code, tools) for binary, code in zip(binaries, codes, strict=True)]


def reason(output: str) -> str:
    """The first error in what a compiler printed, without where in its own files it found it."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("PTXAS error:")]  # ptxas says more
    for line in lines:
        found = re.search(r"\b(?:error|fatal)\s*:\s*(.+)", line, re.IGNORECASE)
        if found is not None:
            return found[1]
    last = lines[-1] if lines else "the compiler gives no reason"
    quoted = re.fullmatch(r"\w+\((['\"])(.*)\1\)", last)  # the exception that Triton wraps
    return quoted[2] if quoted else last


def _cause(error: BaseException) -> BaseException:
    """What was raised first: each function that calls the one at fault adds only its own lines."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _resources(binary: Binary, code: tuple[Instruction, ...], tools: Path) -> Resources:
    registers, stack = _resource_usage(binary.cubin, tools)
    reads, writes = loads(code), stores(code)
    has_products = any(instruction.name in PRODUCTS for instruction in code)
    hazards = tuple(f"ptxas: {loss}" for loss in binary.losses)
    groups: tuple[int, ...] = ()
    inner, uses = None, ()
    try:
        flow = flow_of(code)
        if has_products:
            touched = [effects(instruction) for instruction in code]
            held_at = held(code, flow, registers)
            groups = taken(code, held_at)
            hazards = (
                *hazards,
                *overwritten_operands(code, flow, touched),
                *touched_in_flight(code, flow, touched),
                *beyond_what_is_held(code, touched, held_at),
            )
        inner, uses = stretch(code, flow), exponentials(code, flow)
    except (UnknownMnemonic, UnreadableFlow) as error:
        hazards = (*hazards, f"machine code that cannot be judged: {error}")
    return Resources(
        registers=registers,
        stack=stack,
        shared=binary.shared,
        wgmma=has_products,
        tma=reads.tma or writes.tma,
        warps=binary.warps,
        taken=groups,
        hazards=hazards,
        loads=reads,
        stores=writes,
        stretch=inner,
        exponentials=uses,
    )


@contextlib.contextmanager
def _output_to(file: io.TextIOBase) -> Generator[None]:
    """What this process, its C++ and its children print goes to a file."""
    kept = os.dup(2)
    try:
        os.dup2(file.fileno(), 2)
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _resource_usage(cubin: bytes, tools: Path) -> tuple[int, int]:
    """Registers and stack bytes of a thread, read by the cuobjdump in Triton's wheel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tools / "cuobjdump", "-res-usage", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    usage = re.search(r"REG:(\d+) STACK:(\d+)", done.stdout)
    if usage is None:
        raise RuntimeError(f"{command[0]} printed no resource usage: {done.stdout!r}")
    return int(usage[1]), int(usage[2])
