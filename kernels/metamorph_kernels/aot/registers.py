"""Which general registers each instruction of Hopper reads and writes.

Every mnemonic is listed. One that is not is an error: taken for granted it could write a register
behind the back of a check. Uniform registers and predicates are not followed, because no product
takes its operand from one.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from metamorph_kernels.aot.disassembly import Instruction

PRODUCTS = frozenset({"HGMMA", "IGMMA", "QGMMA"})  # of warp groups
OPERAND_REGISTERS = 4  # 64 rows of 32 bytes over 128 threads
# Their first operand that is no predicate is the result, if it is a general register.
RESULT = frozenset(
    "ATOM ATOMG ATOMS B2R BREV CS2R F2F F2FP F2I F2IP FADD FFMA FLO FMNMX FMUL FRND FSEL FSET "
    "HADD2 HFMA2 HMNMX2 HMUL2 I2F I2FP I2IP IABS IADD3 IDP IMAD LD LDC LDG LDL LDS LDSM LEA LOP3 "
    "MATCH MOV MOVM MUFU P2R PLOP3 POPC PRMT R2UR REDUX S2R S2UR SEL SGXT SHF SHFL SYNCS VIADD "
    "VIADDMNMX VIMNMX VIMNMX3 VOTE".split()
)
# They write no general register: stores, comparisons, control flow, and all of the uniform path.
NO_RESULT = frozenset(
    "ACQBULK BAR BRA BREAK BRX BSSY BSYNC CCTL CGAERRBAR DEPBAR ELECT ERRBAR EXIT FCHK FENCE "
    "FSETP HSETP2 ISETP LDGDEPBAR LDGSTS MEMBAR NANOSLEEP NOP R2P RED REDG ST STAS STG STL STS "
    "STSM UBLKCP UBLKPF UFLO UIADD3 UIMAD UISETP ULDC ULEA ULOP3 UMOV UP2UR UPLOP3 UPOPC UPRMT "
    "USEL USETMAXREG USGXT USHF UTMACCTL UTMACMDFLUSH UTMALDG UTMAPF UTMAREDG UTMASTG VOTEU "
    "WARPGROUP WARPSYNC YIELD".split()
)
_WIDTHS = {"64": 2, "128": 4}  # registers, by modifier
_MOVES = frozenset("ATOM ATOMG ATOMS LD LDC LDG LDL LDS RED REDG ST STAS STG STL STS".split())
_CONVERSIONS = frozenset({"F2F", "F2I", "FRND", "I2F"})
_MATRICES = frozenset({"LDSM", "STSM"})
_REGISTER = re.compile(r"(?<!\w)R(\d+)(\.64)?(?!\w)")
_SHAPE = re.compile(r"64x(\d+)x(\d+)")


@dataclass(frozen=True)
class Effects:
    """The numbers of the general registers that an instruction writes and reads."""

    writes: frozenset[int]
    reads: frozenset[int]


@dataclass(frozen=True)
class Product:
    """A product of 64 x `depth` by `depth` x `columns`; `operand` is empty if in shared memory."""

    columns: int
    depth: int
    accumulators: frozenset[int]
    operand: frozenset[int]


class UnknownMnemonic(ValueError):
    """An instruction of which it is not known what it reads and writes."""


def product(instruction: Instruction) -> Product:
    """The shape and registers of one of `PRODUCTS`."""
    shape = _SHAPE.fullmatch(instruction.modifiers[0])
    accumulated = instruction.modifiers[1] if len(instruction.modifiers) > 1 else ""
    if shape is None or accumulated not in ("F16", "F32", "S32") or "SP" in instruction.modifiers:
        raise UnknownMnemonic(f"{instruction} is a product of an unknown kind")
    columns = int(shape[1])
    width = columns // 4 if accumulated == "F16" else columns // 2
    return Product(
        columns=columns,
        depth=int(shape[2]),
        accumulators=_range(instruction.operands[0], width),
        operand=_range(instruction.operands[1], OPERAND_REGISTERS),
    )


def effects(instruction: Instruction) -> Effects:
    """What it reads and writes, also where its guard may keep it from doing so."""
    if instruction.name in PRODUCTS:
        made = product(instruction)
        return Effects(made.accumulators, made.accumulators | made.operand)
    ignorance = _ignorance(instruction.name, instruction.modifiers)
    if ignorance:
        raise UnknownMnemonic(f"{instruction} {ignorance}")
    values = instruction.values
    has_result = (
        instruction.name in RESULT
        and bool(values)
        and re.fullmatch(r"R(Z|\d+)", values[0]) is not None
    )
    sources = values[1:] if has_result else values
    if instruction.name == "BRX":
        return Effects(frozenset(), _range(instruction.operands[0], 2))
    reads: set[int] = set()
    for place, source in enumerate(sources):
        if "[" in source:
            reads |= _addresses(source)
        else:
            reads |= _range(source, _source_width(instruction, place == len(sources) - 1))
    writes = _range(values[0], _result_width(instruction)) if has_result else frozenset()
    return Effects(writes, frozenset(reads))


@lru_cache
def _ignorance(name: str, modifiers: tuple[str, ...]) -> str:
    """Why the effects of an opcode are not known, or ""."""
    if name not in RESULT and name not in NO_RESULT:
        return "is not in the lists of registers.py"
    found = set(modifiers)
    widened = name in RESULT and name not in _MOVES and name != "SYNCS" and found & {*_WIDTHS}
    if widened or (name in _CONVERSIONS and found & {"F64", "S64", "U64"}):
        return "takes registers of an unknown width"
    return ""


def _result_width(instruction: Instruction) -> int:
    name, modifiers = instruction.name, instruction.modifiers
    if name in _MOVES:
        return max(_WIDTHS.get(modifier, 1) for modifier in ("", *modifiers))
    if name in _MATRICES:
        return _matrices(modifiers)
    pair = name == "SYNCS" or (name == "IMAD" and "WIDE" in modifiers)
    return 2 if pair or (name == "CS2R" and "32" not in modifiers) else 1


def _source_width(instruction: Instruction, last: bool) -> int:
    """Registers of an operand that is no address; the last of IMAD is its addend."""
    if instruction.name in _MOVES or instruction.name in _MATRICES:
        return _result_width(instruction)
    addend = instruction.name == "IMAD" and last and {"WIDE", "HI"} & set(instruction.modifiers)
    return 2 if addend else 1


def _matrices(modifiers: tuple[str, ...]) -> int:
    """How many 8 x 8 matrices LDSM and STSM move: a register of a thread each."""
    return int(modifiers[-1]) if modifiers[-1] in ("2", "4") else 1


def _range(operand: str, width: int) -> frozenset[int]:
    match = _REGISTER.search(operand)
    return frozenset(range(int(match[1]), int(match[1]) + width)) if match else frozenset()


def _addresses(operand: str) -> frozenset[int]:
    found: set[int] = set()
    for register, double in _REGISTER.findall(operand):
        found |= set(range(int(register), int(register) + (2 if double else 1)))
    return frozenset(found)
