import pytest
import torch

pytest.importorskip("triton")

from bench.runs import sweep  # noqa: E402
from metamorph_kernels import aot
from metamorph_kernels.architectures import MOST_SHARED_BYTES
from metamorph_kernels.attention import decode_triton, interval_gluon, interval_triton, tiles_gluon
from metamorph_kernels.attention.tiles_gluon import GLUON_TILES, RUNNERS_UP

CPU = torch.device("cpu")
PASS = aot.Stretch(
    is_loop=True, instructions=500, outside=4000, products=16, flops=2**22,
    operand_bytes=80 * 1024, is_eight_bit=False, moved_bytes=1024, exponentials=66, arithmetic=300,
    overlapped=0, tma_bytes=65_536, barriers=3, leaves_in_flight=False, consumers=1,
)  # fmt: skip


def test_a_change_lasts_as_long_as_its_block():
    shipped = interval_triton.TILES
    change = next(iter(sweep.changes("forward", 128).values()))
    with pytest.raises(RuntimeError), sweep.changed(interval_triton, change):
        assert interval_triton.TILES["forward", 128] != shipped["forward", 128]
        assert interval_triton.TILES["forward", 64] == shipped["forward", 64]
        raise RuntimeError
    assert interval_triton.TILES is shipped


def options(compilation) -> tuple:
    """What decides the code of a candidate."""
    arguments = compilation.arguments
    names = ("BLOCK_M", "BLOCK_N", "STAGES", "TAKE_TURNS")
    chosen = tuple(arguments.get(name) for name in names)
    return *chosen, compilation.num_warps, compilation.num_stages


@pytest.mark.parametrize("head_dim", sweep.HEAD_DIMS)
@pytest.mark.parametrize("kernel", sweep.KERNELS)
def test_every_candidate_changes_the_kernel_that_is_compiled(kernel, head_dim, monkeypatch):
    seen = []

    def compile_ahead(compilation, capability):
        seen.append(compilation)
        warps = compilation.num_warps
        return aot.Resources(
            registers=100, stack=0, shared=1000, wgmma=True, tma=True, warps=warps, stretch=PASS
        )

    monkeypatch.setattr(aot, "compile_ahead", compile_ahead)
    monkeypatch.setattr(aot, "faults", lambda *_: [])
    changes = sweep.changes(kernel, head_dim)
    for change in changes.values():
        words, good = sweep.compiled(kernel, head_dim, change)
        assert good and words.startswith("100 registers, 1000 bytes shared, 500 instructions")
        assert words.endswith("(model)")
    gluon = kernel.startswith("gluon_")
    assert len(seen) == len(changes) > (1 if gluon else 10)
    expected = {
        "decode": "decode_split",
        "fp8": "attention_forward_fp8",
        "prefill": "prefill_forward",
    }.get(kernel, f"attention_{kernel}")
    if gluon:
        expected = f"attention_{kernel.removeprefix('gluon_')}_gluon"
    assert {compilation.kernel.__name__ for compilation in seen} == {expected}
    assert {compilation.arguments["HEAD_DIM"] for compilation in seen} == {head_dim}
    assert len(set(map(options, seen))) > (1 if gluon else 10)


def test_a_change_reaches_the_launch_of_a_gluon_kernel(monkeypatch):
    launched = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *arguments, **options: launched.append(options)

    monkeypatch.setattr(interval_gluon, "attention_forward_gluon", Kernel())
    monkeypatch.setattr(interval_gluon, "repair_forward", Kernel())
    q, k, v, out = (torch.empty(8, 1, 128, dtype=torch.bfloat16) for _ in range(4))
    lse, bounds = torch.empty(1, 8), torch.zeros(8, dtype=torch.int32)
    for tiles in RUNNERS_UP["forward", 128]:
        changed = {**GLUON_TILES, ("forward", 128): tiles}
        with sweep.changed(tiles_gluon, {"GLUON_TILES": changed}):
            interval_gluon.launch_forward(q, k, v, out, lse, bounds, bounds, True, 1.0)
        forward, _ = launched[-2:]
        assert (forward["BLOCK_N"], forward["STAGES"]) == (tiles.block, tiles.stages)
        assert forward["TAKE_TURNS"] == tiles.take_turns


def test_the_runners_up_are_others_than_what_ships_and_fit_an_sm():
    for place, shipped in GLUON_TILES.items():
        candidates = (shipped, *RUNNERS_UP[place])
        assert len(set(candidates)) == len(candidates) > 1
        for tiles in candidates:
            rings = 2 * tiles.stages * tiles.block * place[1] * 2  # bytes of both operands
            rows = 2 * 2 * 64 * place[1] * 2  # at least two of 64 for each consumer
            assert rings + rows < MOST_SHARED_BYTES["sm_90"]


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"stack": 64}, "spills 64 bytes"),
        ({"shared": 300_000}, "needs 300000 bytes of shared memory"),
        ({"wgmma": False}, "without wgmma"),
    ],
)
def test_what_does_not_fit_is_a_line_with_the_reason(monkeypatch, resources, words):
    used = {
        "registers": 100,
        "stack": 0,
        "shared": 1000,
        "wgmma": True,
        "tma": True,
        "warps": 8,
    } | resources
    monkeypatch.setattr(aot, "compile_ahead", lambda *_, **__: aot.Resources(**used))
    change = next(iter(sweep.changes("forward", 128).values()))
    reason, good = sweep.compiled("forward", 128, change)
    assert words in reason and not good


def test_what_does_not_compile_is_a_line_with_the_reason(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("Triton says\nno")

    monkeypatch.setattr(aot, "compile_ahead", refuse)
    change = next(iter(sweep.changes("decode", 128).values()))
    assert sweep.compiled("decode", 128, change) == ("RuntimeError: no", False)


def test_candidates_are_held_to_what_the_shipped_tiles_give(monkeypatch):
    def run(x):
        warps = decode_triton.NUM_WARPS
        if warps == 16:
            raise RuntimeError("out of resources")
        return x * (2 if warps == 32 else 1)

    monkeypatch.setattr(sweep, "_calls", lambda *_: (run, lambda repeat: (torch.ones(3, 4),)))
    chosen = {f"{warps} warps": {"NUM_WARPS": warps} for warps in (8, 16, 32)}
    found = {result.provider: result for result in sweep.timings("decode", 128, chosen, CPU)}
    assert found[sweep.SHIPPED].status == found["8 warps"].status == "ok"
    assert found["16 warps"].reason == "RuntimeError: out of resources"
    assert found["32 warps"].reason.startswith("wrong: error 1.0e+00")
    assert found["32 warps"].timing is None
