"""Machine code as instructions, read by the nvdisasm in Triton's wheel."""

import re
import struct
import subprocess
import tempfile
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path

BYTES = 16  # of an instruction
# For sm_120 some versions add what the scheduler is told: "&wr=0x0 ?trans8".
_LINE = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(.*?)(?:\s+[&?]\w.*?)?\s*;")
_INSTRUCTION = re.compile(r"(?:@(!?U?P[0-9T]+)\s+)?([\w.]+)\s*(.*)")
_LEADING = frozenset({"BRA", "BSSY"})  # to an address that they name
_INDIRECT_BRANCH_TARGETS = 0x34  # an attribute of a kernel, as the linkers of CUDA number them
_PREDICATE = re.compile(r"!?U?P(?:\d|T)")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: `opcode` with its modifiers, as in LDG.E.128; `guard` such as !P0, or "".

    BRX, which leads to an address in a register, has after it those that its cubin names.
    """

    address: int
    guard: str
    opcode: str
    operands: tuple[str, ...]
    name: str  # the opcode without modifiers
    modifiers: tuple[str, ...]
    values: tuple[str, ...]  # the operands but for predicates: the result first, if there is one

    def __str__(self) -> str:
        return f"{self.opcode} at {self.address:#06x}"


def instructions(text: str, start: int = 0) -> tuple[Instruction, ...]:
    """The instructions of a listing of nvdisasm; `start` is to be address 0."""
    matches = filter(None, map(_LINE.match, text.splitlines()))
    found = []
    for match in matches:
        guard, opcode, operands, name, modifiers, values = _words(match[2])
        if start and name in _LEADING and operands[-1].startswith("0x"):
            operands = (*operands[:-1], hex(int(operands[-1], 16) - start))
        address = int(match[1], 16) - start
        found.append(Instruction(address, guard, opcode, operands, name, modifiers, values))
    return tuple(found)


def disassemble(
    binaries: list[bytes], capability: int, tools: Path
) -> list[tuple[Instruction, ...]]:
    """The instructions of each cubin.

    nvdisasm takes a third of a second to start, so it reads the code of all in one go, laid end to
    end: branches are relative, and are printed with the address where they lead.
    """
    codes = [_code(binary) for binary in binaries]
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(codes))
        file.flush()
        command = [tools / "nvdisasm", "--binary", f"SM{capability}", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if _LINE.match(line)]
    bounds = [0, *accumulate(len(code) // BYTES for code in codes)]
    if len(lines) != bounds[-1]:
        raise RuntimeError(f"nvdisasm printed {len(lines)} instructions of {bounds[-1]}")
    return [
        _with_targets(
            instructions("\n".join(lines[first:stop]), start=first * BYTES),
            indirect_branches(_section(binary, b".nv.info.")),
        )
        for binary, (first, stop) in zip(binaries, pairwise(bounds), strict=True)
    ]


@lru_cache(maxsize=100_000)  # kernels of a family share most of their lines
def _words(line: str) -> tuple[str, str, tuple[str, ...], str, tuple[str, ...], tuple[str, ...]]:
    """All fields of an instruction but its address."""
    found = _INSTRUCTION.fullmatch(line)
    if found is None:
        raise ValueError(f"no instruction: {line!r}")
    guard, opcode, rest = found.groups()
    operands = tuple(word.strip() for word in rest.replace(".reuse", "").split(","))
    name, *modifiers = opcode.split(".")
    values = tuple(word for word in operands if not _PREDICATE.fullmatch(word))
    return guard or "", opcode, operands, name, tuple(modifiers), values


def _with_targets(
    code: tuple[Instruction, ...], targets: dict[int, tuple[int, ...]]
) -> tuple[Instruction, ...]:
    """The code with the addresses that an indirect branch can lead to as its last operands."""
    return tuple(
        replace(each, operands=(*each.operands, *map(hex, targets.get(each.address, ()))))
        if each.name == "BRX"
        else each
        for each in code
    )


def indirect_branches(attributes: bytes) -> dict[int, tuple[int, ...]]:
    """By address of an indirect branch, where it can lead: an attribute of the kernel says it.

    Attributes follow each other in .nv.info.KERNEL: a byte that is 4 if a body follows, a byte for
    the kind, 16 bits that are the body's length or the value. This body has for each branch its
    address, 32 bits that are 0, how many targets there are, and these, of 32 bits each.
    """
    found = {}
    place = 0
    while place < len(attributes):
        has_body, kind, length = struct.unpack_from("<BBH", attributes, place)
        place += 4
        if has_body != 4:
            continue
        if kind == _INDIRECT_BRANCH_TARGETS:
            words = [*struct.unpack_from(f"<{length // 4}I", attributes, place)]
            while words:
                branch, _, count, *words = words
                found[branch], words = tuple(words[:count]), words[count:]
        place += length
    return found


def _code(binary: bytes) -> bytes:
    """The machine code of the only kernel in a cubin."""
    return _section(binary, b".text.")


def _section(binary: bytes, prefix: bytes) -> bytes:
    """The one section whose name begins like that, of a cubin, which is a 64-bit ELF file."""
    [offset] = struct.unpack_from("<Q", binary, 40)
    size, count, names = struct.unpack_from("<HHH", binary, 58)
    sections = [
        struct.unpack_from("<IIQQQQ", binary, offset + number * size) for number in range(count)
    ]
    table = sections[names][4]
    found = [
        binary[first : first + length]
        for name, _, _, _, first, length in sections
        if binary.startswith(prefix, table + name)
    ]
    if len(found) != 1:
        raise ValueError(
            f"a cubin of one kernel was expected, got {len(found)} sections {prefix.decode()}*"
        )
    return found[0]
