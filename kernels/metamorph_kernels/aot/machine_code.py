"""A kernel's machine code in numbers: how it moves memory, and what its innermost loop does."""

from collections.abc import Sequence
from dataclasses import dataclass

from metamorph_kernels.aot.control_flow import Flow, Loop
from metamorph_kernels.aot.disassembly import Instruction
from metamorph_kernels.aot.flight import in_flight, is_wait
from metamorph_kernels.aot.registers import PRODUCTS, product
from metamorph_kernels.architectures import WARP_SIZE

ROWS_OF_A_PRODUCT = 64
_ARITHMETIC = frozenset({"FADD", "FFMA", "FMNMX", "FMUL", "MUFU"})  # on float32

_WAITING = frozenset({"BRA", "NOP", "SYNCS"})  # a loop of these asks a barrier again and again


@dataclass(frozen=True)
class Stretch:
    """What every pass through a loop executes, as the instruction stream of one warp.

    The loop is, of those without another loop inside, the one with the most FLOPs; without
    products the longest; without loops the whole kernel (`is_loop` is False). What only some passes
    execute is left out: masks at the edge, the epilogue of a persistent kernel, a second look at a
    barrier.

    `outside` is how many instructions the rest of the kernel has. `flops` are those of the
    `products` of one warp group: 2 x 64 x N x K each, of 8-bit numbers where `is_eight_bit`.
    `moved_bytes` are those that loads and stores of one warp move to and from global memory,
    without TMA. `exponentials` are
    all uses of the special function unit, `arithmetic` includes them: instructions on float32. Of
    these, `overlapped` are issued while a product of the loop is in flight. `tma_bytes` is what
    barriers are told to expect from TMA for the whole block, 0 where none loads, None where the
    code does not show it. `barriers` are those at which all warps of the block meet.
    `leaves_in_flight` says that a wait for products lets some fly on.
    """

    is_loop: bool
    instructions: int
    outside: int
    products: int
    flops: int
    is_eight_bit: bool
    moved_bytes: int
    exponentials: int
    arithmetic: int
    overlapped: int
    tma_bytes: int | None
    barriers: int
    leaves_in_flight: bool

    @property
    def waits_at_once(self) -> bool:
        """Nothing much is done while a product computes: less than a tenth of the arithmetic."""
        return (
            self.products > 0
            and not self.leaves_in_flight
            and 10 * self.overlapped <= self.arithmetic
        )


@dataclass(frozen=True)
class Accesses:
    """Of global memory, in one direction: bits of the widest by a thread, and other ways used."""

    bits: int
    asynchronous_bits: int  # cp.async
    tma: bool

    def __str__(self) -> str:
        words = ["TMA"] if self.tma else []
        words += [f"cp.async {self.asynchronous_bits}"] if self.asynchronous_bits else []
        words += [str(self.bits)] if self.bits else []
        return "+".join(words) or "-"


def loads(code: Sequence[Instruction]) -> Accesses:
    """How a kernel reads global memory."""
    return Accesses(
        bits=_widest(code, "LDG", "LD"),
        asynchronous_bits=_widest(code, "LDGSTS"),
        tma=any(instruction.name in ("UTMALDG", "UBLKCP") for instruction in code),
    )


def stores(code: Sequence[Instruction]) -> Accesses:
    """How a kernel writes global memory."""
    return Accesses(
        bits=_widest(code, "STG", "ST"),
        asynchronous_bits=0,
        tma=any(instruction.name in ("UTMASTG", "UTMAREDG") for instruction in code),
    )


def stretch(code: Sequence[Instruction], flow: Flow) -> Stretch:
    """The innermost loop of a kernel."""
    loop = _innermost(code, flow)
    places = sorted(flow.block_at) if loop is None else flow.every_pass(loop)
    names = [code[place].name for place in places]
    made = [product(code[place]) for place in places if code[place].name in PRODUCTS]
    overlapped, leaves_in_flight = _overlap(code, flow, set(places)) if made else (0, False)
    return Stretch(
        is_loop=loop is not None,
        instructions=len(places),
        outside=len(flow.block_at) - len(places),
        products=len(made),
        flops=sum(2 * ROWS_OF_A_PRODUCT * each.columns * each.depth for each in made),
        is_eight_bit="QGMMA" in names,
        moved_bytes=sum(
            WARP_SIZE * _bits(code[place].modifiers) // 8
            for place in places
            if code[place].name in ("LDG", "STG")
        ),
        exponentials=names.count("MUFU"),
        arithmetic=sum(name in _ARITHMETIC for name in names),
        overlapped=overlapped,
        tma_bytes=_tma_bytes(code, places),
        barriers=names.count("BAR"),
        leaves_in_flight=leaves_in_flight,
    )


def _widest(code: Sequence[Instruction], *names: str) -> int:
    widths = [each.modifiers for each in code if each.name in names]
    return max(map(_bits, widths), default=0)


def _bits(modifiers: tuple[str, ...]) -> int:
    """Of one access by a thread: 32 unless a modifier such as 128, U8 or S16 says otherwise."""
    for modifier in modifiers:
        if modifier in ("64", "128"):
            return int(modifier)
        if modifier in ("U8", "S8", "U16", "S16"):
            return int(modifier[1:])
    return 32


def _innermost(code: Sequence[Instruction], flow: Flow) -> Loop | None:
    """The loop that `Stretch` is about."""
    work = {}
    for loop in flow.loops:
        places = flow.places(loop)
        if _WAITING.issuperset(code[place].name for place in places):
            continue
        made = [product(code[place]) for place in places if code[place].name in PRODUCTS]
        work[loop] = (sum(each.columns * each.depth for each in made), len(places))
    most = max((products for products, _ in work.values()), default=0)
    candidates = [loop for loop in work if work[loop][0] or not most]
    innermost = [
        loop for loop in candidates if not any(other.blocks < loop.blocks for other in candidates)
    ]
    return max(innermost, key=work.__getitem__, default=None)


def _overlap(code: Sequence[Instruction], flow: Flow, places: set[int]) -> tuple[int, bool]:
    """`Stretch.overlapped` and `leaves_in_flight`."""
    overlapped, leaves_in_flight = 0, False
    for place, flight in in_flight(code, flow):
        if place not in places:
            continue
        if is_wait(code[place]):
            left = int(code[place].operands[1], 16)
            leaves_in_flight |= any(age < left for age in flight.values())
        elif code[place].name in _ARITHMETIC:
            overlapped += not places.isdisjoint(flight)
    return overlapped, leaves_in_flight


def _tma_bytes(code: Sequence[Instruction], places: list[int]) -> int | None:
    """What the barriers of a loop are told to expect from TMA."""
    if not any(code[place].name == "UTMALDG" for place in places):
        return 0
    expected = [
        _constant(code, place)
        for place in places
        if code[place].opcode == "SYNCS.ARRIVE.TRANS64" and code[place].operands[-1] != "RZ"
    ]
    return None if None in expected else sum(expected)


def _constant(code: Sequence[Instruction], place: int) -> int | None:
    """The last operand of an instruction, if the nearest move into it is one of a constant."""
    register, guard = code[place].operands[-1], code[place].guard
    for earlier in reversed(code[:place]):
        if earlier.operands[0] == register and earlier.guard in ("", guard):
            number = earlier.operands[-1]
            is_move = earlier.name == "MOV" or earlier.opcode == "IMAD.MOV.U32"
            return int(number, 16) if is_move and number.startswith("0x") else None
    return None
