"""What ptxas says to have given up reaches the gate, from Triton's cache too."""

import pytest
import triton

from metamorph_kernels.aot.assembler import losses
from metamorph_kernels.aot.building import build
from metamorph_kernels.losses import cosine_compilations

USAGE = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'product' for 'sm_90a'
ptxas info    : Function properties for product
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 240 registers, used 1 barriers
"""
SERIALIZED = "wgmma.mma_async instructions are serialized due to"


def info(code, words):
    return f"ptxas info    : ({code}) Potential Performance Loss: {words}\n"


@pytest.mark.parametrize(
    ("log", "found"),
    [
        (USAGE, ()),
        (
            USAGE
            + info("C7512", f"{SERIALIZED} insufficient register resources for the function 'a'"),
            (f"{SERIALIZED} insufficient register resources",),
        ),
        (
            info(
                "C7510",
                f"{SERIALIZED} insufficient register resources for the wgmma pipeline in the "
                "function 'a' in line 7",
            )
            + info(
                "C7510",
                f"{SERIALIZED} non wgmma instructions reading accumulator registers of  a wgmma "
                "between start and end of the pipeline stage in the function 'b'",
            )
            + info("C7510", f"{SERIALIZED} ill formed pipeline stage in the function 'a'")
            + info("C7510", f"{SERIALIZED} ill formed pipeline stage in the function 'b'")
            + USAGE,
            (
                f"{SERIALIZED} insufficient register resources for the wgmma pipeline",
                f"{SERIALIZED} non wgmma instructions reading accumulator registers of a wgmma "
                "between start and end of the pipeline stage",
                f"{SERIALIZED} ill formed pipeline stage",
            ),
        ),
        (
            info("C7508", "'setmaxnreg' ignored to maintain minimum register requirements."),
            ("'setmaxnreg' ignored to maintain minimum register requirements.",),
        ),
    ],
)
def test_losses_in_what_ptxas_prints(log, found):
    assert losses(log) == found


@pytest.mark.parametrize("capability", [90, 100])  # Blackwell has a ptxas of its own
def test_what_ptxas_said_is_kept_with_the_kernel(monkeypatch, tmp_path, capability):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    [case, *_] = cosine_compilations.compilations()
    first = build(case, capability)
    assert first.losses == ()
    [log] = tmp_path.rglob("ptxas.log")
    assert "Compiling entry function" in log.read_text()
    log.write_text(info("C7510", "something in the function 'a'"))
    again = build(case, capability)
    assert again.cubin == first.cubin and again.losses == ("something",)
    log.unlink()  # as where Triton compiled it for somebody else
    assert build(case, capability) == first and log.exists()
    assert not triton.knobs.nvidia.dump_ptxas_log and not triton.knobs.compilation.always_compile
