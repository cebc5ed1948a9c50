"""A kernel's machine code in numbers: how it moves memory, and what its innermost loop does."""

from collections.abc import Sequence
from dataclasses import dataclass

from metamorph_kernels.aot.control_flow import Flow, Loop
from metamorph_kernels.aot.disassembly import Instruction
from metamorph_kernels.aot.flight import in_flight, is_wait
from metamorph_kernels.aot.registers import PRODUCTS, Product, product
from metamorph_kernels.aot.warp_groups import TAKES, partitions
from metamorph_kernels.architectures import WARP_SIZE

ROWS_OF_A_PRODUCT = 64
_ARITHMETIC = frozenset({"FADD", "FFMA", "FMNMX", "FMUL", "MUFU"})  # on float32

_ASKS = frozenset({"SYNCS", TAKES})  # a barrier, or the pool of registers
_WAITING = _ASKS | {"BRA", "IMAD", "MOV", "NOP", "PLOP3"}  # a loop of these asks again and again


@dataclass(frozen=True)
class Stretch:
    """What every pass through a loop executes, as the instruction stream of one warp.

    The loop is, of those without another loop inside, the one with the most FLOPs; without
    products the longest; without loops the whole kernel (`is_loop` is False). What only some passes
    execute is left out: masks at the edge, the epilogue of a persistent kernel, a second look at a
    barrier.

    `outside` is how many instructions the rest of the kernel has. `flops` are those of the
    `products` of one warp group: 2 x 64 x N x K each, of 8-bit numbers where `is_eight_bit`;
    `operand_bytes` are what these read of shared memory.
    `moved_bytes` are those that loads and stores of one warp move to and from global memory,
    without TMA. `exponentials` are
    all uses of the special function unit, `arithmetic` includes them: instructions on float32. Of
    these, `overlapped` are issued while a product of the loop is in flight. `tma_bytes` is what
    barriers are told to expect from TMA for the whole block, 0 where none loads, None where the
    code does not show it. `barriers` are those at which all warps of the block, or of the
    partition, meet. `leaves_in_flight` says that a wait for products lets some fly on.

    Of a warp-specialised kernel it is the loop of one of `consumers` partitions with products, and
    `tma_bytes` are those of a pass of the producer's loop.
    """

    is_loop: bool
    instructions: int
    outside: int
    products: int
    flops: int
    operand_bytes: int
    is_eight_bit: bool
    moved_bytes: int
    exponentials: int
    arithmetic: int
    overlapped: int
    tma_bytes: int | None
    barriers: int
    leaves_in_flight: bool
    consumers: int

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
    consumers, others = by_products(code, flow)
    loop = innermost(code, flow, consumers[0])
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
        operand_bytes=(1 if "QGMMA" in names else 2) * sum(map(_operands_in_memory, made)),
        is_eight_bit="QGMMA" in names,
        moved_bytes=sum(
            WARP_SIZE * _bits(code[place].modifiers) // 8
            for place in places
            if code[place].name in ("LDG", "STG")
        ),
        exponentials=names.count("MUFU"),
        arithmetic=sum(name in _ARITHMETIC for name in names),
        overlapped=overlapped,
        tma_bytes=_tma_bytes(code, flow, places, others),
        barriers=names.count("BAR"),
        leaves_in_flight=leaves_in_flight,
        consumers=len(consumers),
    )


def by_products(
    code: Sequence[Instruction], flow: Flow
) -> tuple[list[frozenset[int]], list[frozenset[int]]]:
    """The partitions with products and the others; without any product all count as the first."""
    parts = partitions(code, flow)
    consumers = [
        blocks
        for blocks in parts
        if any(code[place].name in PRODUCTS for block in blocks for place in flow.blocks[block])
    ]
    return (
        (consumers, [each for each in parts if each not in consumers]) if consumers else (parts, [])
    )


def _operands_in_memory(made: Product) -> int:
    """How many numbers a product reads from shared memory: its left rows may be in registers."""
    rows = 0 if made.operand else ROWS_OF_A_PRODUCT
    return (rows + made.columns) * made.depth


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


def innermost(code: Sequence[Instruction], flow: Flow, part: frozenset[int]) -> Loop | None:
    """The loop of a partition that `Stretch` is about: most products, of those alike the shortest.

    A longer one of the same products is for tiles with a mask, and those are few.
    """
    work = {}
    for loop in flow.loops:
        places = flow.places(loop)
        names = {code[place].name for place in places}
        if not loop.blocks <= part or (names <= _WAITING and not names.isdisjoint(_ASKS)):
            continue
        made = [product(code[place]) for place in places if code[place].name in PRODUCTS]
        products = sum(each.columns * each.depth for each in made)
        work[loop] = (products, -len(places) if products else len(places))
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


def _tma_bytes(
    code: Sequence[Instruction], flow: Flow, places: list[int], others: list[frozenset[int]]
) -> int | None:
    """What barriers are told to expect from TMA in a loop, and in a producer's innermost one.

    Where the producer has several, one for each head of a group, a pass is one of any of them.
    """
    loading = [
        loop
        for loop in flow.loops
        if any(loop.blocks <= part for part in others)
        and any(code[place].name == "UTMALDG" for place in flow.places(loop))
    ]
    produced = [
        _expected_bytes(code, flow.every_pass(loop))
        for loop in loading
        if not any(other.blocks < loop.blocks for other in loading)
    ]
    known = [expected for expected in produced if expected is not None]
    own = _expected_bytes(code, places)
    if own is None or len(known) < len(produced):
        return None
    return own + max(known, default=0)


def _expected_bytes(code: Sequence[Instruction], places: list[int]) -> int | None:
    if not any(code[place].name == "UTMALDG" for place in places):
        return 0
    total = 0
    for place in places:
        if code[place].opcode == "SYNCS.ARRIVE.TRANS64" and code[place].operands[-1] != "RZ":
            expected = _constant(code, place)
            if expected is None:
                return None
            total += expected
    return total


def _constant(code: Sequence[Instruction], place: int) -> int | None:
    """The last operand of an instruction, if the nearest move into it is one of a constant."""
    register, guard = code[place].operands[-1], code[place].guard
    for earlier in reversed(code[:place]):
        if earlier.operands[0] == register and earlier.guard in ("", guard):
            number = earlier.operands[-1]
            is_move = earlier.name == "MOV" or earlier.opcode == "IMAD.MOV.U32"
            return int(number, 16) if is_move and number.startswith("0x") else None
    return None
