"""Which exp2 of the softmax are issued while the tensor cores work on a product."""

from collections.abc import Sequence
from dataclasses import dataclass

from metamorph_kernels.aot.control_flow import Flow
from metamorph_kernels.aot.disassembly import Instruction
from metamorph_kernels.aot.flight import in_flight, surely_under_a_product
from metamorph_kernels.aot.machine_code import by_products, innermost
from metamorph_kernels.aot.registers import PRODUCTS


@dataclass(frozen=True)
class Exponentials:
    """The exp2 of every pass through the innermost loop of one partition with products.

    `in_flight` are the addresses of those before which some product is in flight on all paths;
    `products` the addresses of the products that may be it.
    """

    count: int
    in_flight: tuple[int, ...]
    products: tuple[int, ...]

    def __str__(self) -> str:
        words = f"{len(self.in_flight)} of {self.count}"
        if not self.in_flight:
            return words
        return f"{words} at {_span(self.in_flight)} under {_span(self.products)}"


def exponentials(code: Sequence[Instruction], flow: Flow) -> tuple[Exponentials, ...]:
    """One for each partition whose innermost loop has products and exp2."""
    loops = [innermost(code, flow, part) for part in by_products(code, flow)[0]]
    passes = [flow.every_pass(loop) for loop in loops if loop is not None]
    found = []
    for places in passes:
        uses = [place for place in places if code[place].opcode == "MUFU.EX2"]
        if uses and any(code[place].name in PRODUCTS for place in places):
            found.append(uses)
    if not found:
        return ()
    under, flights = surely_under_a_product(code, flow), dict(in_flight(code, flow))
    return tuple(
        Exponentials(
            count=len(uses),
            in_flight=tuple(code[place].address for place in uses if place in under),
            products=tuple(
                code[place].address
                for place in sorted(
                    {product for place in uses if place in under for product in flights[place]}
                )
            ),
        )
        for uses in found
    )


def _span(addresses: tuple[int, ...]) -> str:
    return f"{min(addresses):#06x}-{max(addresses):#06x}"
