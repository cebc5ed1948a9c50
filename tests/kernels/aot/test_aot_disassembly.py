import struct

from metamorph_kernels.aot.disassembly import indirect_branches, instructions

LISTING = """
	.headerflags	@"EF_CUDA_SM90"
        /*0040*/              @!P1 LDG.E.128 R4, desc[UR6][R8.64.reuse+0x10] ;
        /*0050*/                   ISETP.GE.AND P0, PT, R4.reuse, R5, PT ;
        /*0060*/                   BRA 0x40;
"""


def test_the_parts_of_an_instruction():
    load, compare, _ = instructions(LISTING)
    assert (load.address, load.guard, load.opcode) == (0x40, "!P1", "LDG.E.128")
    assert (load.name, load.modifiers) == ("LDG", ("E", "128"))
    assert load.operands == ("R4", "desc[UR6][R8.64+0x10]")
    assert compare.operands == ("P0", "PT", "R4", "R5", "PT") and compare.values == ("R4", "R5")


def test_what_lies_behind_other_code_is_moved_to_address_0():
    load, _, branch = instructions(LISTING, start=0x40)
    assert load.address == 0 and branch.operands == ("0x0",)


def test_notes_for_the_scheduler_are_no_operands():
    annotated = instructions(
        "/*0000*/ BRA 0x6c90     &req={0,1}    ?trans6 ;\n/*0010*/ NOP ?WAIT4_END_GROUP;"
    )
    assert [(each.opcode, each.operands) for each in annotated] == [
        ("BRA", ("0x6c90",)),
        ("NOP", ("",)),
    ]


def test_where_indirect_branches_can_lead():
    words = (0x190, 0, 3, 0x1A0, 0x7760, 0xFF40, 0x200, 0, 1, 0x210)
    body = struct.pack(f"<BBH{len(words)}I", 4, 0x34, 4 * len(words), *words)
    other = struct.pack("<BBHI", 4, 0x1C, 4, 0x34)  # where the kernel ends
    value = struct.pack("<BBH", 3, 0x1B, 168)  # the most registers
    assert indirect_branches(value + other + body + value) == {
        0x190: (0x1A0, 0x7760, 0xFF40),
        0x200: (0x210,),
    }
    assert indirect_branches(value + other) == {}
