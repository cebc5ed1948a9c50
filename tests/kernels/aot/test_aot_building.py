import importlib
import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import overwritten_operand
import pytest
import triton

import metamorph_kernels
from metamorph_kernels import aot
from metamorph_kernels.aot.building import build, examine, reason
from metamorph_kernels.aot.disassembly import disassemble
from metamorph_kernels.aot.registers import PRODUCTS, product
from metamorph_kernels.architectures import MOST_SHARED_BYTES
from metamorph_kernels.attention import (
    decode_triton,
    fp8_triton,
    interval_compilations,
    interval_triton,
)
from metamorph_kernels.attention.interval import TRITON_HEAD_DIMS
from metamorph_kernels.attention.launch_triton import packed_heads
from metamorph_kernels.backends import ROW_OPERATIONS
from metamorph_kernels.linear import mlp_triton
from metamorph_kernels.losses import cross_entropy_triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
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
    return next(interval_compilations.compilations())


def test_every_kernel_of_the_package_is_compiled_in_every_tile_of_the_table():
    folder = Path(metamorph_kernels.__file__).parent
    names = [path.relative_to(folder).with_suffix("").parts for path in folder.rglob("[!_]*.py")]
    written = {
        value.__name__
        for name in names
        for value in vars(importlib.import_module(".".join(["metamorph_kernels", *name]))).values()
        if isinstance(value, triton.JITFunction)
    }
    cases = list(aot.compilations())
    assert {case.kernel.__name__ for case in cases} == written - HELPERS
    for tiles in (*interval_triton.TILES.values(), interval_triton.FLOAT32_TILES):
        assert any(
            case.arguments.get("BLOCK_M") == tiles.block_m
            and case.arguments.get("BLOCK_N") == tiles.block_n
            and case.num_warps == tiles.num_warps
            for case in cases
        )
    names = [(case.kernel.__name__, case.configuration) for case in cases]
    assert len(set(names)) == len(names)


def test_attention_is_compiled_with_every_head_dim_and_kind_of_group():
    compiled = defaultdict(list)
    for case in aot.compilations():
        if "HEAD_DIM" in case.arguments:
            compiled[case.kernel.__name__].append(case.arguments)
    assert len(compiled) == 8
    for name, cases in compiled.items():
        assert {each["HEAD_DIM"] for each in cases} == {*TRITON_HEAD_DIMS}, name
    for kernel in (*interval_compilations.KERNELS.values(), fp8_triton.attention_forward_fp8):
        cases = compiled[kernel.__name__]
        groups = {each["GROUP"] for each in cases}
        # One head, packed heads, more heads than a tile packs.
        assert {1, 4, 8} <= groups and any(packed_heads(group) < group for group in groups)
        assert {each["CAUSAL"] for each in cases if each["HEAD_DIM"] == 80} == {True, False}
    for kernel in interval_compilations.KERNELS.values():
        cases = compiled[kernel.__name__]
        assert any(each["key_heads"] == 1 for each in cases)  # a constant where it is 1
    rows = {each["ROWS"] for each in compiled["decode_split"]}
    assert rows == {16, 32}


def test_kernels_of_rows_are_compiled_for_every_architecture_and_matrix_products_for_hopper():
    everywhere = {
        case.kernel.__name__ for case in aot.compilations() if len(case.architectures) > 1
    }
    assert everywhere == {
        "cosine_forward",
        "cosine_scale",
        "cross_entropy",
        "pool_backward",
        "pool_forward",
        "scale",
    }
    assert len(ROW_OPERATIONS) == 4  # those that launch these six
    for case in aot.compilations():
        assert case.architectures in (("sm_90",), tuple(MOST_SHARED_BYTES))
        assert case.architectures == ("sm_90",) or not case.tensor_cores


def test_compiles_for_hopper_without_a_gpu():
    used = aot.compile_ahead(a_forward_configuration(), 90)
    assert used.wgmma and used.tma and used.stack == 0 and used.hazards == ()
    assert 100 < used.registers <= 255 and 65_536 < used.shared <= MOST_SHARED_BYTES["sm_90"]
    tile = used.stretch
    # One warp group has 64 of the 128 rows, and 128 keys of head dim 64, in both products.
    assert tile.flops == 2 * (2 * 64 * 128 * 64)
    assert tile.tma_bytes == 2 * 128 * 64 * 2  # keys and values in bfloat16
    assert tile.exponentials >= 128 * 64 // 128  # the scores of 64 rows over 128 threads
    assert used.loads.tma and used.stores.tma


def test_an_operand_that_the_compiler_overwrites_is_found():
    """The kernel whose wrong results nothing but its machine code showed."""
    case = overwritten_operand.compilation()
    used = aot.compile_ahead(case, 90)
    [fault] = aot.faults(case, used)
    assert "HGMMA.64x128x16.F32.BF16" in fault and "of LDSM.16.M88.4" in fault
    assert "F2FP.BF16.F32.PACK_AB" in fault and "overwrites in the loop (and 7 more)" in fault


@pytest.mark.parametrize(
    ("kernel", "configuration", "depth"),
    [
        ("attention_forward", "bf16 D=128 causal group 4 128x128", 16),
        ("attention_forward_fp8", "bf16 out D=128 causal group 4 128x128", 32),
    ],
)
def test_queries_are_no_register_operand(kernel, configuration, depth):
    """The weights are, in P V alone: q k^T reads queries and keys in shared memory."""
    [case] = [
        case
        for case in aot.compilations()
        if (case.kernel.__name__, case.configuration) == (kernel, configuration)
    ]
    [code] = disassemble([build(case, 90).cubin], 90, TOOLS)
    products = [product(instruction) for instruction in code if instruction.name in PRODUCTS]
    in_registers = [each for each in products if each.operand]
    of_head_dim, of_keys = 128 // depth, 128 // depth
    assert len(products) == of_head_dim + of_keys and len(in_registers) == of_keys
    scores, sums = products[:of_head_dim], products[of_head_dim:]
    assert sums == in_registers and not any(each.operand for each in scores)


@pytest.mark.parametrize("configuration", ["bf16 gradient any V", "bf16 gradient V in 16s"])
def test_logits_are_read_and_their_gradient_written_16_bytes_at_a_time(configuration):
    """Also for a vocabulary that is no multiple of 16, such as 128,258."""
    [case] = [
        case for case in cross_entropy_triton.compilations() if case.configuration == configuration
    ]
    used = aot.compile_ahead(case, 90)
    assert (used.loads.bits, used.stores.bits) == (128, 128)


@pytest.mark.parametrize(
    ("kernel", "configuration", "exponentials", "most"),
    [
        ("linear_gelu", "bf16 64x64x64 state", 1, 45),
        ("linear_gelu_gradient", "bf16 64x64x64 activation", 2, 55),
    ],
)
def test_gelu_takes_few_instructions(kernel, configuration, exponentials, most):
    """The slow unit once for the tail and once for the slope, and no element twice."""
    [case] = [
        case
        for case in mlp_triton.compilations()
        if (case.kernel.__name__, case.configuration) == (kernel, configuration)
    ]
    [code] = disassemble([build(case, 90).cubin], 90, TOOLS)
    opcodes = [instruction.opcode for instruction in code]
    elements = 64 * 64 // (32 * case.num_warps)  # of a thread
    assert opcodes.count("MUFU.EX2") == exponentials * elements
    assert len(opcodes) < most * elements
    assert "LDG.E.U16" not in opcodes  # of the bias


def test_half_the_warps_spill_and_are_refused():
    widest = next(
        case
        for case in interval_compilations.compilations()
        if case.kernel.__name__ == "attention_key_value_gradient"
        and case.arguments["BLOCK_D"] == 128
    )
    case = replace(widest, num_warps=4)
    used = aot.compile_ahead(case, 90)
    assert used.stack > 0
    assert aot.faults(case, used) == [f"spills {used.stack} bytes"]


def test_kernels_that_are_read_together_are_read_as_each_alone():
    binaries = [
        build(case, 90)
        for case in decode_triton.compilations()
        if case.kernel.__name__ == "decode_join" and "D=64" in case.configuration
    ]
    assert len(binaries) == 3
    assert examine(binaries, 90) == [examine([binary], 90)[0] for binary in binaries]


def test_a_refusal_is_one_sentence_and_prints_nothing(capfd, monkeypatch):
    def refuse(*_, **__):
        print("the whole assembly")
        os.write(2, b"kernel.py:3:1: error: operand #0 is odd\nmodule { a dump }\n")
        raise RuntimeError("PassManager::run failed")

    monkeypatch.setattr(triton, "compile", refuse)
    with pytest.raises(aot.CompileError, match="^operand #0 is odd$"):
        aot.compile_ahead(a_forward_configuration(), 90)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("PTXAS error: Internal\nptxas fatal   : no such option\n", "no such option"),
        ("ptxas x.ptx, line 5; error   : Illegal operand\n", "Illegal operand"),
        ("at 3:8:\n  x = y\n      ^\nNameError('y is not defined')", "y is not defined"),
        ("at 3:8:\n  x = y\n      ^\ny is not defined", "y is not defined"),
        ("", "the compiler gives no reason"),
    ],
)
def test_the_reason_in_what_a_compiler_prints(output, sentence):
    assert reason(output) == sentence
