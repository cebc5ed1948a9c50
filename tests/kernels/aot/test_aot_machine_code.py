from listings import analysed, listing

from metamorph_kernels.aot.machine_code import Stretch, loads, stores, stretch

LOOP = """
        MOV R2, RZ
again:  SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R3
        @!P0 BRA again
        @P2 IMAD.MOV.U32 R5, RZ, RZ, 0x8000
        @P2 SYNCS.ARRIVE.TRANS64 RZ, [UR4], R5
        UTMALDG.2D [UR8], [UR10]
        HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], RZ, !UPT
        HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24, gsb0
        {}
        FMUL R88, R24, R3
        MUFU.EX2 R89, R25
        @P3 BRA behind
        FADD R90, R90, R3
        FADD R90, R90, R3
behind: BAR.SYNC.DEFER_BLOCKING 0x0
        @P1 BRA again
        FADD R91, R91, R3
        EXIT
"""
WAIT = "WARPGROUP.DEPBAR.LE gsb0, 0x0"


def measured(text: str) -> Stretch:
    code, flow, _ = analysed(text)
    return stretch(code, flow)


def test_a_pass_through_the_loop_with_products():
    # One loop, because the barrier is asked again by the same branch target.
    text = LOOP.replace("@!P0 BRA again", "NOP").format(WAIT)
    assert measured(text) == Stretch(
        is_loop=True,
        instructions=13,
        outside=len(listing(text)) - 13,
        products=2,
        flops=2 * (2 * 64 * 128 * 16),
        operand_bytes=2 * (64 + 128) * 16 * 2,
        is_eight_bit=False,
        moved_bytes=0,
        exponentials=1,
        arithmetic=2,
        overlapped=0,
        tma_bytes=0x8000,
        barriers=1,
        leaves_in_flight=False,
        consumers=1,
    )
    assert measured(text).waits_at_once


def test_rows_in_registers_are_not_read_from_shared_memory():
    text = LOOP.replace("@!P0 BRA again", "NOP").replace(
        "R24, gdesc[UR4], R24", "R24, R152, gdesc[UR4], R24"
    )
    assert measured(text.format(WAIT)).operand_bytes == (64 + 128 + 128) * 16 * 2


def test_work_under_a_product():
    late = measured(LOOP.replace("@!P0 BRA again", "NOP").format("FMUL R92, R93, R94\n" + WAIT))
    assert (late.arithmetic, late.overlapped, late.waits_at_once) == (3, 1, False)


def test_a_wait_that_leaves_the_youngest_group_in_flight():
    text = LOOP.replace("@!P0 BRA again", "NOP").format("WARPGROUP.DEPBAR.LE gsb0, 0x1")
    assert measured(text).leaves_in_flight and not measured(text).waits_at_once


def test_bytes_that_the_code_does_not_show():
    text = LOOP.replace("@!P0 BRA again", "NOP").replace("RZ, RZ, 0x8000", "RZ, RZ, R7")
    assert measured(text.format(WAIT)).tma_bytes is None


def test_asking_a_barrier_again_is_no_inner_loop():
    text = "again: FADD R4, R4, R5\nspin: SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R3\n"
    found = measured(text + "@!P0 BRA spin\n@P1 BRA again\nEXIT")
    assert (found.is_loop, found.instructions, found.arithmetic) == (True, 4, 1)


def test_of_loops_with_the_same_products_the_one_without_a_mask_counts():
    plain = """
full:   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24, gsb0
        WARPGROUP.DEPBAR.LE gsb0, 0x0
        @P1 BRA full
"""
    masked = """
mask:   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24, gsb0
        WARPGROUP.DEPBAR.LE gsb0, 0x0
        FSEL R24, R24, -INF, P2
        @P1 BRA mask
"""
    for loops in (plain + masked, masked + plain):
        found = measured(loops + "        EXIT\n")
        assert (found.is_loop, found.instructions, found.products) == (True, 3, 1)


def test_a_kernel_without_loops_and_products():
    found = measured("FADD R4, R4, R5\nBAR.SYNC.DEFER_BLOCKING 0x0\nEXIT")
    assert (found.is_loop, found.instructions, found.products) == (False, 3, 0)
    assert not found.waits_at_once and found.outside == 0


def test_bytes_that_threads_move():
    loads = "LDG.E.128 R4, desc[UR4][R2.64]\nLDG.E.U16 R8, desc[UR4][R2.64]\n"
    found = measured(f"{loads}STG.E.64 desc[UR4][R2.64], R4\nEXIT")
    assert found.moved_bytes == 32 * (16 + 2 + 8)


def test_products_of_eight_bit_numbers():
    text = LOOP.replace("@!P0 BRA again", "NOP").format(WAIT)
    text = text.replace("HGMMA.64x128x16.F32.BF16", "QGMMA.64x128x32.F32.E4M3.E4M3")
    assert measured(text).is_eight_bit


def test_the_widest_accesses():
    code = listing(
        """
        LDG.E.64 R4, desc[UR4][R2.64]
        @P0 LDG.E.U16 R4, desc[UR4][R2.64]
        LDGSTS.E.BYPASS.128 [R8], desc[UR4][R2.64]
        STG.E.U8 desc[UR4][R2.64], R4
        UTMASTG.2D [UR8], [UR10]
        EXIT
        """
    )
    assert str(loads(code)) == "cp.async 128+64"
    assert str(stores(code)) == "TMA+8"
    assert str(stores(code[:3])) == "-"
