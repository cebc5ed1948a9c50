"""Machine code written by hand for the tests that read it."""

import re

from metamorph_kernels.aot.control_flow import Flow, flow_of
from metamorph_kernels.aot.disassembly import Instruction, instructions
from metamorph_kernels.aot.registers import Effects, effects


def listing(text: str) -> tuple[Instruction, ...]:
    """One instruction a line; "name:" before one is a label that branches may name."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    labels = {}
    for number, line in enumerate(lines):
        label = re.match(r"(\w+):\s+", line)
        if label:
            labels[label[1]] = hex(16 * number)
            lines[number] = line[label.end() :]
    placed = [
        f"/*{16 * number:04x}*/ "
        + re.sub(r"\b[a-z]+\b", lambda word: labels.get(word[0], word[0]), line)
        + " ;"
        for number, line in enumerate(lines)
    ]
    return instructions("\n".join(placed))


def analysed(text: str) -> tuple[tuple[Instruction, ...], Flow, list[Effects]]:
    """What the checks of the dataflow take."""
    code = listing(text)
    return code, flow_of(code), [effects(instruction) for instruction in code]
