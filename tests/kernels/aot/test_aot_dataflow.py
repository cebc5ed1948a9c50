"""Register operands that a loop overwrites, in code that was cut down to what matters."""

import pytest
from listings import analysed

from metamorph_kernels.aot.dataflow import overwritten_operands

# The queries stay in R8..R11; the weights are made in R12..R15.
RIGHT = """
        LDSM.16.M88.4 R8, [R2]
again:  HGMMA.64x16x16.F32.BF16 R24, R8, gdesc[UR4], RZ, !UPT, gsb0
        WARPGROUP.DEPBAR.LE gsb0, 0x0
        F2FP.BF16.F32.PACK_AB R12, R25, R24
        F2FP.BF16.F32.PACK_AB R13, R27, R26
        F2FP.BF16.F32.PACK_AB R14, R29, R28
        F2FP.BF16.F32.PACK_AB R15, R31, R30
        HGMMA.64x16x16.F32.BF16 R40, R12, gdesc[UR8], R40, gsb0
        WARPGROUP.DEPBAR.LE gsb0, 0x0
        @P0 BRA again
        EXIT
"""


def faults(text: str) -> list[str]:
    return overwritten_operands(*analysed(text))


def with_weights_in(register: int) -> str:
    """`RIGHT` with the weights in four other registers."""
    text = RIGHT
    for place in range(4):
        text = text.replace(f"R{12 + place},", f"R{register + place},")
    return text


def test_an_operand_that_lives_across_the_loop_may_stay_there():
    assert faults(RIGHT) == []


@pytest.mark.parametrize("register", [5, 8, 11])
def test_weights_in_the_registers_of_the_queries_are_found(register):
    [found] = faults(with_weights_in(register))
    first = max(register, 8)
    assert found == (
        f"HGMMA.64x16x16.F32.BF16 at 0x0010 reads R{first} of LDSM.16.M88.4 at 0x0000, which "
        f"F2FP.BF16.F32.PACK_AB at {0x30 + 16 * (first - register):#06x} overwrites in the loop"
    )


def test_so_is_a_write_on_some_rounds_only():
    assert faults(with_weights_in(8).replace("F2FP.BF16.F32.PACK_AB R8", "@P3 F2FP.BF16 R8"))


def test_so_is_a_passing_value_that_no_product_reads():
    passing = "MOV R9, R3\n        STS [R5], R9\n        @P0 BRA again"
    [found] = faults(RIGHT.replace("@P0 BRA again", passing))
    assert "reads R9 of LDSM.16.M88.4 at 0x0000, which MOV at 0x0090 overwrites" in found


def test_so_is_one_in_a_loop_around():
    around = RIGHT.replace("LDSM.16.M88.4 R8, [R2]", "LDSM.16.M88.4 R8, [R2]\nouter: NOP")
    assert faults(around.replace("EXIT", "@P1 BRA outer\nEXIT")) == []
    wrong = "MOV R9, R3\nSTS [R5], R9\n@P1 BRA outer\nEXIT"
    [found] = faults(around.replace("EXIT", wrong))
    assert "reads R9" in found


def test_what_was_overwritten_may_be_loaded_again():
    restored = with_weights_in(8).replace(
        "@P0 BRA again", "LDSM.16.M88.4 R8, [R2]\n        @P0 BRA again"
    )
    assert faults(restored) == []


def test_it_may_be_made_anew_on_some_rounds():
    anew = RIGHT.replace(
        "again:  HGMMA",
        "again:  @P1 BRA keep\n        LDSM.16.M88.4 R8, [R3]\nkeep:   HGMMA",
    )
    assert faults(anew) == []


def test_a_pipeline_may_carry_an_operand_to_the_next_round():
    carried = """
            F2FP.BF16.F32.PACK_AB R8, R25, R24
            F2FP.BF16.F32.PACK_AB R9, R27, R26
            F2FP.BF16.F32.PACK_AB R10, R29, R28
            F2FP.BF16.F32.PACK_AB R11, R31, R30
    again:  HGMMA.64x16x16.F32.BF16 R40, R8, gdesc[UR8], R40, gsb0
            WARPGROUP.DEPBAR.LE gsb0, 0x0
            F2FP.BF16.F32.PACK_AB R8, R25, R24
            F2FP.BF16.F32.PACK_AB R9, R27, R26
            F2FP.BF16.F32.PACK_AB R10, R29, R28
            F2FP.BF16.F32.PACK_AB R11, R31, R30
            @P0 BRA again
            EXIT
    """
    assert faults(carried) == []
