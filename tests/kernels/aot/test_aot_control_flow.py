import pytest
from listings import listing

from metamorph_kernels.aot.control_flow import UnreadableFlow, flow_of

NESTED = """
       MOV R4, RZ
outer: MOV R5, RZ
inner: IADD3 R5, R5, 0x1, RZ
       @P2 BRA next
       FADD R6, R6, R7
next:  ISETP.GE.AND P0, PT, R5, R2, PT
       @!P0 BRA inner
       @P1 BRA outer
       EXIT
       NOP
"""


def test_loops_from_the_inside_out():
    flow = flow_of(listing(NESTED))
    inner, outer = flow.loops
    assert flow.places(inner) == [2, 3, 4, 5, 6]
    assert flow.places(outer) == [1, 2, 3, 4, 5, 6, 7]
    assert flow.loops_around(4) == [inner, outer]
    assert flow.loops_around(0) == []


def test_what_every_pass_executes():
    flow = flow_of(listing(NESTED))
    assert flow.every_pass(flow.loops[0]) == [2, 3, 5, 6]


def test_what_cannot_be_reached_is_no_part():
    assert 9 not in flow_of(listing(NESTED)).block_at


@pytest.mark.parametrize("branch", ["@P0 BRA there", "BRA !P0, there", "@!P1 BRA P0, there"])
def test_a_branch_with_a_condition_also_falls_through(branch):
    flow = flow_of(listing(f"{branch}\nEXIT\nthere: EXIT"))
    assert set(flow.block_at) == {0, 1, 2}
    assert set(flow_of(listing("BRA there\nEXIT\nthere: EXIT")).block_at) == {0, 2}


def test_an_indirect_branch_leads_to_all_places_that_it_names():
    flow = flow_of(listing("BRX R4 -0x10, one, two\nNOP\none: EXIT\ntwo: EXIT"))
    assert set(flow.block_at) == {0, 2, 3}
    assert flow.successors[0] == (flow.block_at[2], flow.block_at[3])


def test_what_stands_on_every_path():
    flow = flow_of(listing("@P0 BRA two\none: NOP\ntwo: EXIT"))
    first, one, two = (flow.block_at[place] for place in (0, 1, 2))
    assert flow.stands_on_every_path(first, two) and flow.stands_on_every_path(two, two)
    assert not flow.stands_on_every_path(one, two)


def test_threads_meet_behind_bsync():
    meeting = "BSSY B0, there\n@P0 BRA there\nBSYNC B0\nthere: EXIT"
    assert set(flow_of(listing(meeting)).block_at) == {0, 1, 2, 3}
    with pytest.raises(UnreadableFlow, match="BSYNC at 0x0020 does not stand before"):
        flow_of(listing("BSSY B0, there\n@P0 BRA there\nBSYNC B0\nNOP\nthere: EXIT"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("BRX R4 -0x10\nEXIT", "BRX at 0x0000 leads to a place that it does not name"),
        ("BRX R4 -0x10, 0x10, 0x400\nEXIT", "BRX at 0x0000 leads out of the kernel"),
        ("JMX R4 -0x10\nEXIT", "JMX at 0x0000 leads to a place that it does not name"),
        ("BRA 0x400\nEXIT", "BRA at 0x0000 leads out of the kernel"),
        ("MOV R4, RZ", "ends without EXIT"),
        ("@P0 BRA second\nfirst: NOP\nsecond: @P1 BRA first\nEXIT", "entered at two places"),
    ],
)
def test_refuses_what_cannot_be_followed(text, words):
    with pytest.raises(UnreadableFlow, match=words):
        flow_of(listing(text)).loops  # noqa: B018
