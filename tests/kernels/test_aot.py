import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import triton

import metamorph_kernels
from metamorph_kernels import aot, attention_triton
from metamorph_kernels.aot import Resources

FITS = Resources(registers=200, stack=0, shared=232_448, wgmma=True, tma=True)
# Called by kernels, never launched.
HELPERS = {
    "halves",
    "inverse_length",
    "inverse_norm",
    "magnitude",
    "normal_distribution",
    "pooled",
    "query_tile",
    "readers",
    "scale_of",
    "store_scaled",
    "strips",
    "taps",
    "to_float8",
    "weight_of",
}


def a_forward_configuration():
    return next(attention_triton.compilations())


def test_every_kernel_of_the_package_is_compiled_in_every_tile_of_the_table():
    # The CUDA library beside these files is no module of Python.
    names = [path.stem for path in Path(metamorph_kernels.__file__).parent.glob("[!_]*.py")]
    written = {
        value.__name__
        for name in names
        for value in vars(importlib.import_module(f"metamorph_kernels.{name}")).values()
        if isinstance(value, triton.JITFunction)
    }
    cases = list(aot.compilations())
    assert {case.kernel.__name__ for case in cases} == written - HELPERS
    for tiles in (*attention_triton.TILES.values(), attention_triton.FLOAT32_TILES):
        assert any(
            case.arguments.get("BLOCK_M") == tiles.block_m
            and case.arguments.get("BLOCK_N") == tiles.block_n
            and case.num_warps == tiles.num_warps
            for case in cases
        )
    names = [(case.kernel.__name__, case.configuration) for case in cases]
    assert len(set(names)) == len(names)


def test_what_counts_as_a_fault():
    case = a_forward_configuration()
    assert aot.faults(case, FITS) == []
    assert aot.faults(case, replace(FITS, stack=8)) == ["spills 8 bytes, 0 declared"]
    assert aot.faults(replace(case, stack_bytes=8, reason="known"), replace(FITS, stack=8)) == []
    assert aot.faults(case, replace(FITS, shared=232_449)) == [
        "needs 232449 bytes of shared memory"
    ]
    pair = replace(case, residents=2, num_warps=8)
    small = replace(FITS, registers=128, shared=115_712)
    assert aot.faults(pair, small) == []
    for more in ({"registers": 129}, {"shared": 115_713}):
        assert aot.faults(pair, replace(small, **more)) == ["fewer than 2 blocks fit a processor"]
    assert aot.faults(case, replace(FITS, wgmma=False)) == ["matrix product without wgmma"]
    assert aot.faults(replace(case, tensor_cores=False), replace(FITS, wgmma=False)) == []


def test_compiles_for_hopper_without_a_gpu():
    used = aot.compile_ahead(a_forward_configuration(), 90)
    assert used.wgmma and used.tma and used.stack == 0
    assert 100 < used.registers <= 255 and 65_536 < used.shared <= aot.MOST_SHARED_BYTES


def test_half_the_warps_spill_and_are_refused():
    widest = next(
        case
        for case in attention_triton.compilations()
        if case.kernel.__name__ == "attention_key_value_gradient"
        and case.arguments["BLOCK_D"] == 128
    )
    case = replace(widest, num_warps=4)
    used = aot.compile_ahead(case, 90)
    assert used.stack > 0
    assert aot.faults(case, used) == [f"spills {used.stack} bytes, 0 declared"]


def test_the_command_prints_a_row_for_each_configuration(capsys):
    assert aot.main(["--kernel", "decode_join"]) == 0
    header, *rows, verdict = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["kernel", "configuration"]
    assert len(rows) == 12 and all(row.startswith("decode_join") for row in rows)
    assert verdict == "12 configurations for sm_90: all fit"


def test_the_command_fails_if_one_does_not_fit(capsys, monkeypatch):
    monkeypatch.setattr(aot, "MOST_SHARED_BYTES", 1500)
    assert aot.main(["--kernel", "decode_join"]) == 1
    printed = capsys.readouterr().out
    assert "needs 2048 bytes of shared memory" in printed and "9 do not fit" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arch", "hopper"], "--arch: expected a name like sm_90, got 'hopper'"),
        (["--kernel", "nothing"], "--kernel: no kernel has 'nothing' in its name"),
    ],
)
def test_refuses(arguments, words, capsys):
    with pytest.raises(SystemExit):
        aot.main(arguments)
    assert words in capsys.readouterr().err
