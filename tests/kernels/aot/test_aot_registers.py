import pytest
from listings import listing

from metamorph_kernels.aot.registers import UnknownMnemonic, effects, product


@pytest.mark.parametrize(
    ("line", "writes", "reads"),
    [
        ("FADD R4, R5, -R6", [4], [5, 6]),
        ("FFMA R4, |R5|.reuse, R6, -R4", [4], [4, 5, 6]),
        ("IADD3 R4, P0, R5, UR7, RZ", [4], [5]),
        ("IMAD.WIDE.U32 R4, R6, 0x4, R8", [4, 5], [6, 8, 9]),
        ("IMAD.HI.U32 R4, R6, R7, R8", [4], [6, 7, 8, 9]),
        ("IMAD.MOV.U32 R4, RZ, RZ, R9", [4], [9]),
        ("CS2R R4, SRZ", [4, 5], []),
        ("CS2R.32 R4, SR_CLOCKLO", [4], []),
        ("F2FP.BF16.F32.PACK_AB R4, R25, R24", [4], [24, 25]),
        ("SHFL.BFLY PT, R4, R5, 0x1, 0x1f", [4], [5]),
        ("P2R R4, PR, RZ, 0x1", [4], []),
        ("LDG.E.128 R4, desc[UR6][R8.64+0x10]", [4, 5, 6, 7], [8, 9]),
        ("LDG.E.U16 R4, desc[UR6][R8.64]", [4], [8, 9]),
        ("LDC.64 R4, c[0x0][0x210]", [4, 5], []),
        ("LDS.64 R4, [R8+UR5+0x10]", [4, 5], [8]),
        ("LDSM.16.MT88.4 R4, [R8]", [4, 5, 6, 7], [8]),
        ("LDSM.16.M88 R4, [R8]", [4], [8]),
        ("ATOMG.E.ADD.STRONG.GPU PT, R4, desc[UR6][R8.64], R10", [4], [8, 9, 10]),
        ("STG.E.64 desc[UR6][R8.64], R4", [], [4, 5, 8, 9]),
        ("STS.128 [R8], R4", [], [4, 5, 6, 7, 8]),
        ("STSM.16.M88.2 [R8], R4", [], [4, 5, 8]),
        ("ISETP.GE.AND P0, PT, R4, R5, PT", [], [4, 5]),
        ("R2UR UR4, R5", [], [5]),
        ("UIADD3.64 UR4, UR6, UR8, URZ", [], []),
        ("SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4+0x8], R5", [], [5]),
        ("SYNCS.ARRIVE.TRANS64 RZ, [UR4], R5", [], [5]),
        ("BAR.SYNC.DEFER_BLOCKING 0x0", [], []),
        ("BRX R4 -0x1a0, 0x1a0", [], [4, 5]),
        ("USETMAXREG.TRY_ALLOC.CTAPOOL UP0, 0xf0", [], []),
    ],
)
def test_what_an_instruction_writes_and_reads(line, writes, reads):
    [instruction] = listing(line)
    found = effects(instruction)
    assert sorted(found.writes) == writes
    assert sorted(found.reads) == reads


def test_a_guard_changes_nothing():
    guarded, free = listing("@!P0 MOV R4, R5\nMOV R4, R5")
    assert effects(guarded) == effects(free)


@pytest.mark.parametrize(
    ("line", "columns", "depth", "accumulators", "operand"),
    [
        ("HGMMA.64x128x16.F32.BF16 R24, R8, gdesc[UR4].tnspB, R24", 128, 16, (24, 88), (8, 12)),
        ("HGMMA.64x64x16.F32 R24, gdesc[UR4], RZ, !UPT, gsb0", 64, 16, (24, 56), None),
        ("HGMMA.64x64x16.F16 R24, R8, gdesc[UR4], R24", 64, 16, (24, 40), (8, 12)),
        ("QGMMA.64x128x32.F32.E4M3.E4M3 R24, R8, gdesc[UR4], R24", 128, 32, (24, 88), (8, 12)),
    ],
)
def test_a_product(line, columns, depth, accumulators, operand):
    [instruction] = listing(line)
    found = product(instruction)
    assert (found.columns, found.depth) == (columns, depth)
    assert found.accumulators == set(range(*accumulators))
    assert found.operand == (set(range(*operand)) if operand else set())
    assert effects(instruction).reads == found.accumulators | found.operand


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("FROB.X R4, R5", "FROB.X at 0x0000 is not in the lists of registers.py"),
        ("CALL.REL.NOINC 0x40", "CALL.REL.NOINC at 0x0000 is not in the lists"),
        ("MOV.64 R4, R6", "MOV.64 at 0x0000 takes registers of an unknown width"),
        ("F2F.F64.F32 R4, R6", "F2F.F64.F32 at 0x0000 takes registers of an unknown width"),
        ("HGMMA.SP.64x64x32.F32 R24, R8, gdesc[UR4], R24", "is a product of an unknown kind"),
    ],
)
def test_refuses_what_it_does_not_know(line, words):
    [instruction] = listing(line)
    with pytest.raises(UnknownMnemonic, match=words):
        effects(instruction)
