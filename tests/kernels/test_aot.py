import importlib
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import triton

import metamorph_kernels
from metamorph_kernels import aot, attention_triton, cross_entropy_triton, mlp_triton
from metamorph_kernels.aot import Resources

FITS = Resources(registers=200, stack=0, shared=232_448, wgmma=True, tma=True)
# Called by kernels, never launched.
HELPERS = {
    "attend_by_keys",
    "distance_and_tail",
    "exponential",
    "finite_shift",
    "gelu",
    "gelu_and_slope",
    "halves",
    "head_of",
    "inverse_length",
    "inverse_norm",
    "is_poisoned",
    "key_or_value_gradient_by_queries",
    "key_rows",
    "load_block",
    "load_rows",
    "magnitude",
    "pooled",
    "query_gradient_by_keys",
    "query_tile",
    "readers",
    "row_pointers",
    "row_products",
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


def compiled(case):
    """What Triton makes of a configuration."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {name: isinstance(value, str) for name, value in case.arguments.items()}
    source = ASTSource(
        fn=case.kernel,
        signature={
            name: value.removesuffix(":16") if types[name] else "constexpr"
            for name, value in case.arguments.items()
        },
        constexprs={name: value for name, value in case.arguments.items() if not types[name]},
        attrs={
            (index,): [["tt.divisibility", 16]]
            for index, value in enumerate(case.arguments.values())
            if isinstance(value, str) and (value.startswith("*") or value.endswith(":16"))
        },
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def machine_code(case, folder):
    (folder / "kernel.cubin").write_bytes(compiled(case).asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    return subprocess.run(
        [tool, "-c", folder / "kernel.cubin"], capture_output=True, text=True, check=True
    ).stdout


def widest_accesses(case, folder):
    """Bits of the widest load and store of global memory in the machine code."""
    text = machine_code(case, folder)
    return [
        max(int(bits or 32) for bits in re.findall(rf"{opcode}\.E(?:\.(64|128))?\b", text))
        for opcode in ("LDG", "STG")
    ]


@pytest.mark.parametrize("configuration", ["bf16 gradient any V", "bf16 gradient V in 16s"])
def test_logits_are_read_and_their_gradient_written_16_bytes_at_a_time(configuration, tmp_path):
    """Also for a vocabulary that is no multiple of 16, such as 128,258."""
    [case] = [
        case for case in cross_entropy_triton.compilations() if case.configuration == configuration
    ]
    assert widest_accesses(case, tmp_path) == [128, 128]


@pytest.mark.parametrize(
    ("kernel", "configuration", "exponentials", "most"),
    [
        ("linear_gelu", "bf16 64x64x64 state", 1, 45),
        ("linear_gelu_gradient", "bf16 64x64x64 activation", 2, 55),
    ],
)
def test_gelu_takes_few_instructions(kernel, configuration, exponentials, most, tmp_path):
    """The slow unit once for the tail and once for the slope, and no element twice."""
    [case] = [
        case
        for case in mlp_triton.compilations()
        if (case.kernel.__name__, case.configuration) == (kernel, configuration)
    ]
    text = machine_code(case, tmp_path)
    elements = 64 * 64 // (32 * case.num_warps)  # of a thread
    assert text.count("MUFU.EX2") == exponentials * elements
    assert len(re.findall(r"/\*[0-9a-f]{4,}\*/ ", text)) < most * elements
    assert "LDG.E.U16" not in text  # of the bias


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
