"""Machine code as instructions, read by the nvdisasm in Triton's wheel."""

import re
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P[0-9T]+)\s+)?([\w.]+)\s*(.*?)\s*;")
_PREDICATE = re.compile(r"!?U?P(?:\d|T)")


@dataclass(frozen=True)
class Instruction:
    """One instruction: `opcode` with its modifiers, as in LDG.E.128; `guard` such as !P0, or ""."""

    address: int
    guard: str
    opcode: str
    operands: tuple[str, ...]

    @cached_property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]

    @cached_property
    def modifiers(self) -> tuple[str, ...]:
        return tuple(self.opcode.split(".")[1:])

    @cached_property
    def values(self) -> tuple[str, ...]:
        """The operands that are not predicates: the result first, where there is one."""
        return tuple(word for word in self.operands if not _PREDICATE.fullmatch(word))

    def __str__(self) -> str:
        return f"{self.opcode} at {self.address:#06x}"


def instructions(text: str) -> tuple[Instruction, ...]:
    """The instructions of a listing of nvdisasm."""
    found = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is not None:
            address, guard, opcode, operands = match.groups()
            words = operands.replace(".reuse", "").split(",")
            found.append(
                Instruction(int(address, 16), guard or "", opcode, tuple(map(str.strip, words)))
            )
    return tuple(found)


def disassemble(
    binaries: list[bytes], capability: int, tools: Path
) -> list[tuple[Instruction, ...]]:
    """The instructions of each cubin, addresses from 0.

    nvdisasm takes a third of a second to start, so it reads the code of all in one go, laid end to
    end: branches are relative, and are printed with the address where they lead.
    """
    codes = [_code(binary) for binary in binaries]
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(codes))
        file.flush()
        command = [tools / "nvdisasm", "--binary", f"SM{capability}", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    listed = instructions(done.stdout)
    bounds = [0]
    for code in codes:
        bounds.append(bounds[-1] + len(code))
    places = {instruction.address: place for place, instruction in enumerate(listed)}
    places[bounds[-1]] = len(listed)
    return [
        tuple(_moved(instruction, -first) for instruction in listed[places[first] : places[stop]])
        for first, stop in pairwise(bounds)
    ]


def _moved(instruction: Instruction, distance: int) -> Instruction:
    """The instruction elsewhere; where it leads moves along."""
    operands = instruction.operands
    if instruction.name in ("BRA", "BSSY", "CALL", "RET") and operands[-1].startswith("0x"):
        operands = (*operands[:-1], hex(int(operands[-1], 16) + distance))
    return Instruction(
        instruction.address + distance, instruction.guard, instruction.opcode, operands
    )


def _code(binary: bytes) -> bytes:
    """The section .text.KERNEL of a cubin, which is a 64-bit ELF file."""
    [offset] = struct.unpack_from("<Q", binary, 40)
    size, count, names = struct.unpack_from("<HHH", binary, 58)
    sections = [
        struct.unpack_from("<IIQQQQ", binary, offset + number * size) for number in range(count)
    ]
    table = sections[names][4]
    found = [
        binary[first : first + length]
        for name, _, _, _, first, length in sections
        if binary.startswith(b".text.", table + name)
    ]
    if len(found) != 1:
        raise ValueError(f"a cubin of one kernel was expected, got {len(found)} sections of code")
    return found[0]
