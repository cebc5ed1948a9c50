from dataclasses import replace

import pytest

from metamorph_kernels import aot
from metamorph_kernels.aot import Resources
from metamorph_kernels.compilation import Compilation, WarpGroups

CASE = Compilation(None, "any", {}, num_warps=8, num_stages=3)
FITS = Resources(registers=200, stack=0, shared=232_448, wgmma=True, tma=True, warps=8)


def test_what_counts_as_a_fault():
    assert aot.faults(CASE, FITS) == []
    assert aot.faults(CASE, replace(FITS, stack=8)) == ["spills 8 bytes"]
    assert aot.faults(CASE, replace(FITS, shared=232_449)) == [
        "needs 232449 bytes of shared memory"
    ]
    pair = replace(CASE, residents=2)
    small = replace(FITS, registers=128, shared=115_712)
    assert aot.faults(pair, small) == []
    for more in ({"registers": 129}, {"shared": 115_713}):
        assert aot.faults(pair, replace(small, **more)) == ["fewer than 2 blocks fit an SM"]
    assert aot.faults(CASE, replace(FITS, wgmma=False)) == ["matrix product without wgmma"]
    assert aot.faults(replace(CASE, tensor_cores=False), replace(FITS, wgmma=False)) == []


def test_each_architecture_has_its_own_shared_memory():
    for architecture, most in (("sm_80", 166_912), ("sm_100", 232_448), ("sm_120", 101_376)):
        assert aot.faults(CASE, replace(FITS, shared=most), architecture) == []
        [fault] = aot.faults(CASE, replace(FITS, shared=most + 1), architecture)
        assert fault == f"needs {most + 1} bytes of shared memory"


def test_the_first_hazard_is_told_and_the_others_counted():
    assert aot.faults(CASE, replace(FITS, hazards=("one",))) == ["one"]
    assert aot.faults(CASE, replace(FITS, hazards=("one", "two", "three"))) == ["one (and 2 more)"]


GROUPS = WarpGroups(168, (240, 240, 24), exponentials_in_flight=True)
SPECIALISED = replace(CASE, num_warps=4, warp_groups=GROUPS)
UNDER = aot.Exponentials(count=2, in_flight=(0x20, 0x40), products=(0x10,))
RUNS = replace(FITS, registers=168, warps=12, taken=(240, 24), exponentials=(UNDER, UNDER))


def test_a_warp_specialised_block_is_launched_with_all_its_warps():
    """12 warps of 168 registers fill an SM, though a consumer takes 240."""
    assert aot.faults(SPECIALISED, RUNS) == []
    assert aot.fitting(SPECIALISED, replace(RUNS, shared=1000)) == 1
    assert aot.fitting(SPECIALISED, replace(RUNS, shared=1000, registers=80)) == 2


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"warps": 16}, "runs 16 warps, not 3 warp groups"),
        ({"registers": 160}, "is launched with 160 registers a thread"),
        ({"taken": (248, 24)}, "warp groups take 248 and 24 registers"),
        ({"taken": ()}, "warp groups take no registers"),
        (
            {"exponentials": (UNDER, replace(UNDER, in_flight=()))},
            "no exp2 of the innermost loop is issued under a product in flight",
        ),
        (
            {"exponentials": ()},
            "no exp2 of the innermost loop is issued under a product in flight",
        ),
    ],
)
def test_warp_groups_that_are_not_as_they_are_said_to_be(changes, fault):
    assert fault in aot.faults(SPECIALISED, replace(RUNS, **changes))


def test_a_design_without_overlap_says_so():
    plain = replace(SPECIALISED, warp_groups=replace(GROUPS, exponentials_in_flight=False))
    assert aot.faults(plain, replace(RUNS, exponentials=(replace(UNDER, in_flight=()),))) == []


def test_groups_cannot_take_more_than_the_block_has():
    greedy = replace(SPECIALISED, warp_groups=replace(GROUPS, registers=(240, 240, 32)))
    assert aot.faults(greedy, replace(RUNS, taken=(240, 32))) == [
        "warp groups wait for more registers than the block is launched with"
    ]


def test_nothing_is_warp_specialised_in_silence():
    assert aot.faults(CASE, replace(FITS, registers=80, warps=12)) == [
        "runs 12 warps, but nothing is said of its warp groups"
    ]
