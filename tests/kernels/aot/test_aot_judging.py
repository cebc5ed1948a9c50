from dataclasses import replace

from metamorph_kernels import aot
from metamorph_kernels.aot import Resources
from metamorph_kernels.compilation import Compilation

CASE = Compilation(None, "any", {}, num_warps=8, num_stages=3)
FITS = Resources(registers=200, stack=0, shared=232_448, wgmma=True, tma=True)


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
