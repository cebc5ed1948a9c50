"""Code with several partitions, and a small warp-specialised kernel that is compiled."""

from dataclasses import replace

import pytest
import warp_specialised
from listings import analysed

from metamorph_kernels import aot
from metamorph_kernels.aot.exponentials import exponentials
from metamorph_kernels.aot.machine_code import stretch
from metamorph_kernels.aot.warp_groups import beyond_what_is_held, held, partitions, taken

# Warps of the default partition go on, the others wait for one of three partitions to run.
SPECIALISED = """
         @!P0 BRA default
asks:    USETMAXREG.DEALLOC.CTAPOOL 0x78
         BRX R4 -0x30, second, producer, done
second:  NOP
         USETMAXREG.TRY_ALLOC.CTAPOOL UP0, 0xf0
         PLOP3.LUT P0, PT, PT, PT, UP0, 0x80, 0x0
         @!P0 BRA second
later:   MUFU.EX2 R230, R5
         HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], RZ, !UPT, gsb0
         MUFU.EX2 R3, R5
         WARPGROUP.DEPBAR.LE gsb0, 0x0
         @P1 BRA later
         BRA asks
producer: USETMAXREG.DEALLOC.CTAPOOL 0x18
         MOV R20, 0x4000
loads:   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R3
         SYNCS.ARRIVE.TRANS64 RZ, [UR4], R20
         UTMALDG.2D [UR8], [UR10]
         @P1 BRA loads
         BRA asks
default: USETMAXREG.DEALLOC.CTAPOOL 0xf0
again:   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], RZ, !UPT, gsb0
         MUFU.EX2 R3, R5
         MUFU.EX2 R3, R6
         WARPGROUP.DEPBAR.LE gsb0, 0x0
         MUFU.EX2 R3, R7
         @P1 BRA again
done:    EXIT
"""


def test_a_partition_is_what_an_indirect_branch_alone_leads_to():
    code, flow, _ = analysed(SPECIALISED)
    parts = partitions(code, flow)
    firsts = [min(flow.blocks[block].start for block in part) for part in parts]
    assert firsts == [0, 3, 13, 27]  # the last is where all partitions end
    assert sum(map(len, parts)) == len(flow.blocks)


def test_code_without_such_a_branch_is_one_partition():
    code, flow, _ = analysed("MOV R3, R4\nagain: FADD R3, R3, R4\n@P0 BRA again\nEXIT")
    assert partitions(code, flow) == [frozenset(range(len(flow.blocks)))]


def test_what_warp_groups_hold():
    code, flow, effects = analysed(SPECIALISED)
    held_at = held(code, flow, 168)
    assert [held_at[place] for place in (0, 2, 4, 7, 14, 21)] == [168, 120, 120, 240, 24, 240]
    assert taken(code, held_at) == (240, 24)
    assert beyond_what_is_held(code, effects, held_at) == []


@pytest.mark.parametrize("register", [24, 230])
def test_a_register_that_was_handed_on_is_found(register):
    text = SPECIALISED.replace("MOV R20, 0x4000", f"MOV R{register}, 0x4000")
    code, flow, effects = analysed(text)
    assert beyond_what_is_held(code, effects, held(code, flow, 168)) == [
        f"MOV at 0x00e0 uses R{register}, but its warps hold 24"
    ]


def test_registers_of_a_product_and_those_before_any_was_taken_count_too():
    text = SPECIALISED.replace("0xf0\n         PLOP3", "0x50\n         PLOP3")
    code, flow, effects = analysed(text.replace("@!P0 BRA default", "@!P0 MOV R168, R3"))
    found = beyond_what_is_held(code, effects, held(code, flow, 168))
    assert "MOV at 0x0000 uses R168, but its warps hold 168" in found
    assert "HGMMA.64x128x16.F32.BF16 at 0x0080 uses R87, but its warps hold 80" in found


def test_exponentials_under_a_product_are_counted_for_each_consumer():
    code, flow, _ = analysed(SPECIALISED)
    default, second = exponentials(code, flow)
    assert str(default) == "2 of 3 at 0x0160-0x0170 under 0x0150-0x0150"
    assert (second.count, second.in_flight) == (2, (0x90,))
    assert exponentials(*analysed("again: MUFU.EX2 R3, R5\n@P1 BRA again\nEXIT")[:2]) == ()


def test_a_pass_is_one_consumers_with_the_bytes_that_the_producer_loads():
    code, flow, _ = analysed(SPECIALISED)
    found = stretch(code, flow)
    assert (found.is_loop, found.consumers, found.instructions, found.products) == (True, 2, 6, 1)
    assert (found.exponentials, found.tma_bytes) == (3, 0x4000)
    unknown = analysed(SPECIALISED.replace("MOV R20, 0x4000", "MOV R20, R7"))
    assert stretch(*unknown[:2]).tma_bytes is None


def test_a_kernel_with_exp2_under_its_product_is_accepted():
    case = warp_specialised.compilation()
    used = aot.compile_ahead(case, 90)
    assert aot.faults(case, used) == [] and aot.fitting(case, used) == 1
    assert (used.registers, used.warps, used.taken, used.stack) == (168, 12, (240, 24), 0)
    for each in used.exponentials:  # both consumers: 64 x 64 scores over 128 threads
        assert each.count == 32 and len(each.in_flight) >= 16
    assert len(used.exponentials) == 2
    assert used.stretch.consumers == 2 and used.stretch.tma_bytes == 64 * 64 * 2


def test_a_kernel_that_waits_before_its_exp2_is_refused():
    case = warp_specialised.compilation(under_the_product=False)
    used = aot.compile_ahead(case, 90)
    assert [str(each) for each in used.exponentials] == ["0 of 32", "0 of 32"]
    assert aot.faults(case, used) == [
        "no exp2 of the innermost loop is issued under a product in flight"
    ]
    plain = replace(case.warp_groups, exponentials_in_flight=False)
    assert aot.faults(replace(case, warp_groups=plain), used) == []


def test_a_kernel_that_takes_other_registers_than_it_says_is_refused():
    case = warp_specialised.compilation(registers=232)
    [fault] = aot.faults(case, aot.compile_ahead(case, 90))
    assert fault == "warp groups take 248 and 232 and 24 registers"
