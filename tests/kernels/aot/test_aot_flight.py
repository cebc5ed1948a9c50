"""Registers that are touched while a product may use them."""

import pytest
from listings import analysed

from metamorph_kernels.aot.flight import surely_under_a_product, touched_in_flight

FIRST = "HGMMA.64x16x16.F32.BF16 R24, R8, gdesc[UR4], R24"
SECOND = "HGMMA.64x16x16.F32.BF16 R40, R12, gdesc[UR4], R40"
WAIT = "WARPGROUP.DEPBAR.LE gsb0, "


def faults(*lines: str) -> list[str]:
    return touched_in_flight(*analysed("\n".join((*lines, "EXIT"))))


@pytest.mark.parametrize(
    ("touch", "words"),
    [
        ("MOV R8, R3", "MOV at 0x0010 writes the operand R8"),
        ("LDS.128 R4, [R2]\nLDS.128 R8, [R2]", "LDS.128 at 0x0020 writes the operand R8"),
        ("FADD R3, R31, R2", "FADD at 0x0010 reads the accumulators R31"),
        ("STS.128 [R2], R28", "STS.128 at 0x0010 reads the accumulators R28"),
        ("STS.64 [R2], R23", "STS.64 at 0x0010 reads the accumulators R24"),
        ("MOV R24, R3", "MOV at 0x0010 writes the accumulators R24"),
        ("@P0 MOV R31, RZ", "MOV at 0x0010 writes the accumulators R31"),
        (
            "HGMMA.64x16x16.F32.BF16 R40, R24, gdesc[UR4], R40, gsb0",
            "HGMMA.64x16x16.F32.BF16 at 0x0010 reads the accumulators R24",
        ),
        (
            "HGMMA.64x16x16.F32.BF16 R28, R12, gdesc[UR4], R28, gsb0",
            "HGMMA.64x16x16.F32.BF16 at 0x0010 writes the accumulators R28",
        ),
    ],
)
def test_before_the_wait_is_a_fault_and_after_it_none(touch, words):
    [found] = faults(FIRST + ", gsb0", touch, WAIT + "0x0")
    assert words in found
    assert found.endswith(" of HGMMA.64x16x16.F32.BF16 at 0x0000 before the wait for it")
    assert faults(FIRST + ", gsb0", WAIT + "0x0", touch, WAIT + "0x0") == []


@pytest.mark.parametrize("touch", ["FADD R3, R8, R4", "MOV R16, R3", FIRST + ", gsb0"])
def test_what_a_product_in_flight_allows(touch):
    """To read its operand, to use other registers, and to go on with its accumulators."""
    assert faults(FIRST + ", gsb0", touch, WAIT + "0x0") == []


def test_a_wait_may_leave_the_youngest_groups_in_flight():
    begun = (FIRST + ", gsb0", SECOND + ", gsb0")
    assert faults(*begun, WAIT + "0x1", "FADD R3, R24, R4") == []
    assert len(faults(*begun, WAIT + "0x1", "FADD R3, R40, R4")) == 1
    assert len(faults(*begun, WAIT + "0x2", "FADD R3, R24, R4")) == 1


def test_a_group_ends_with_gsb0():
    assert len(faults(FIRST, WAIT + "0x0", "FADD R3, R24, R4")) == 1
    assert faults(FIRST, SECOND + ", gsb0", WAIT + "0x0", "FADD R3, R24, R4") == []


def test_a_product_flies_round_the_loop():
    loop = "again: {}\n" + SECOND + ", gsb0\n@P0 BRA again"
    assert len(faults(loop.format("FADD R3, R40, R4"))) == 1
    assert faults(loop.format(WAIT + "0x0\nFADD R3, R40, R4")) == []


def test_a_wait_on_one_of_two_paths_is_not_enough():
    paths = f"@P0 BRA there\n{WAIT}0x0\nthere: FADD R3, R24, R4"
    assert len(faults(FIRST + ", gsb0", paths)) == 1


def test_a_wait_that_may_be_left_out_is_none():
    assert len(faults(FIRST + ", gsb0", "@P0 " + WAIT + "0x0", "FADD R3, R24, R4")) == 1


def under(*lines: str) -> set[int]:
    code, flow, _ = analysed("\n".join((*lines, "EXIT")))
    return {place for place in surely_under_a_product(code, flow) if code[place].name == "MUFU"}


EXP2 = "MUFU.EX2 R3, R4"


def test_what_is_surely_under_a_product():
    begun = FIRST + ", gsb0"
    assert under(EXP2, begun, EXP2, WAIT + "0x0", EXP2) == {2}
    assert under(FIRST, EXP2) == {1}
    # The youngest of two groups flies on.
    assert under(begun, SECOND + ", gsb0", WAIT + "0x1", EXP2, WAIT + "0x0", EXP2) == {3}


def test_on_one_of_two_paths_is_not_sure():
    product = f"@P0 BRA there\n{FIRST}, gsb0\nthere: {EXP2}"
    assert under(product) == set()
    wait = f"@P0 BRA there\n{WAIT}0x0\nthere: {EXP2}"
    assert under(FIRST + ", gsb0", wait) == set()
    assert under("@P0 " + FIRST + ", gsb0", EXP2) == set()


def test_a_product_of_the_last_pass_counts_if_one_flies_into_the_first():
    loop = f"again: {EXP2}\n{WAIT}0x0\n{SECOND}, gsb0\n@P0 BRA again"
    assert under(FIRST + ", gsb0", loop) == {1}
    assert under(loop) == set()
