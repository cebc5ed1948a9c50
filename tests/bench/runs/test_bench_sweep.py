import pytest
import torch

pytest.importorskip("triton")

from bench.runs import sweep  # noqa: E402
from metamorph_kernels import aot
from metamorph_kernels.attention import decode_triton, interval_triton

CPU = torch.device("cpu")


def test_a_change_lasts_as_long_as_its_block():
    shipped = interval_triton.TILES
    change = next(iter(sweep.changes("forward").values()))
    with pytest.raises(RuntimeError), sweep.changed(interval_triton, change):
        assert interval_triton.TILES["forward", 128] != shipped["forward", 128]
        assert interval_triton.TILES["forward", 64] == shipped["forward", 64]
        raise RuntimeError
    assert interval_triton.TILES is shipped


@pytest.mark.parametrize("kernel", sweep.KERNELS)
def test_every_candidate_changes_the_kernel_that_is_compiled(kernel, monkeypatch):
    seen = []

    def compile_ahead(compilation, capability):
        seen.append(compilation)
        return aot.Resources(registers=100, stack=0, shared=1000, wgmma=True, tma=True)

    monkeypatch.setattr(aot, "compile_ahead", compile_ahead)
    changes = sweep.changes(kernel)
    for change in changes.values():
        assert sweep.compiled(kernel, change) == ("100 registers, 1000 bytes shared", True)
    assert len(seen) == len(changes) > 10
    [expected] = {
        "decode": {"decode_split"},
        "fp8": {"attention_forward_fp8"},
    }.get(kernel, {f"attention_{kernel}"})
    assert {compilation.kernel.__name__ for compilation in seen} == {expected}
    options = {(c.arguments["BLOCK_N"], c.num_warps, c.num_stages) for c in seen}
    assert len(options) > 10


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"stack": 64}, "spills 64 bytes"),
        ({"shared": 300_000}, "needs 300000 bytes of shared memory"),
        ({"wgmma": False}, "without wgmma"),
    ],
)
def test_what_does_not_fit_is_a_line_with_the_reason(monkeypatch, resources, words):
    used = {"registers": 100, "stack": 0, "shared": 1000, "wgmma": True, "tma": True} | resources
    monkeypatch.setattr(aot, "compile_ahead", lambda *_, **__: aot.Resources(**used))
    change = next(iter(sweep.changes("forward").values()))
    reason, good = sweep.compiled("forward", change)
    assert words in reason and not good


def test_what_does_not_compile_is_a_line_with_the_reason(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("Triton says\nno")

    monkeypatch.setattr(aot, "compile_ahead", refuse)
    change = next(iter(sweep.changes("decode").values()))
    assert sweep.compiled("decode", change) == ("RuntimeError: no", False)


def test_candidates_are_held_to_what_the_shipped_tiles_give(monkeypatch):
    def run(x):
        warps = decode_triton.NUM_WARPS
        if warps == 16:
            raise RuntimeError("out of resources")
        return x * (2 if warps == 32 else 1)

    monkeypatch.setattr(sweep, "_calls", lambda *_: (run, lambda repeat: (torch.ones(3, 4),)))
    chosen = {f"{warps} warps": {"NUM_WARPS": warps} for warps in (8, 16, 32)}
    found = {result.provider: result for result in sweep.timings("decode", chosen, CPU)}
    assert found[sweep.SHIPPED].status == found["8 warps"].status == "ok"
    assert found["16 warps"].reason == "RuntimeError: out of resources"
    assert found["32 warps"].reason.startswith("wrong: error 1.0e+00")
    assert found["32 warps"].timing is None
