import importlib
import os
from collections import defaultdict
from dataclasses import replace
from itertools import product
from pathlib import Path

import overwritten_operand
import pytest
import torch
import triton

import metamorph_kernels
from metamorph_kernels import aot
from metamorph_kernels.aot.building import build, examine, reason
from metamorph_kernels.aot.disassembly import disassemble
from metamorph_kernels.aot.registers import PRODUCTS
from metamorph_kernels.aot.registers import product as product_of
from metamorph_kernels.architectures import MOST_SHARED_BYTES
from metamorph_kernels.attention import (
    decode_triton,
    fp8_triton,
    gluon_compilations,
    interval_compilations,
    interval_gluon,
    interval_triton,
    prefill_triton,
)
from metamorph_kernels.attention.interval import TRITON_HEAD_DIMS
from metamorph_kernels.attention.launch_triton import packed_heads
from metamorph_kernels.attention.tiles_gluon import GLUON_TILES
from metamorph_kernels.backends import ROW_OPERATIONS
from metamorph_kernels.compilation import gluon_descriptor_type
from metamorph_kernels.linear import mlp_triton
from metamorph_kernels.losses import cross_entropy_triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# Called by kernels, never launched.
HELPERS = {
    "add_block",
    "any_flag",
    "attend_by_keys",
    "attend_keys",
    "distance_and_tail",
    "exponential",
    "finite_shift",
    "first_token",
    "forward_consumer",
    "forward_producer",
    "gelu",
    "gelu_and_slope",
    "get_number",
    "get_tile",
    "halves",
    "head_of",
    "inverse_length",
    "inverse_norm",
    "is_poisoned",
    "key_or_value_gradient_by_queries",
    "key_rows",
    "key_value_gradient_consumer",
    "key_value_gradient_producer",
    "load_block",
    "load_rows",
    "magnitude",
    "new_barriers",
    "new_columns",
    "new_tile_numbers",
    "next_slot",
    "pin",
    "pooled",
    "put_block",
    "put_no_more",
    "put_number",
    "put_tile",
    "queries_of_tiles",
    "query_bounds",
    "query_gradient_by_keys",
    "query_gradient_consumer",
    "query_gradient_producer",
    "query_tile",
    "readers",
    "row_pointers",
    "row_products",
    "scale_of",
    "send",
    "softmax_step",
    "store_rows",
    "store_scaled",
    "strips",
    "taps",
    "tile_bounds",
    "to_float8",
    "transposed",
    "weight_of",
    "weights_of",
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
    shipped = [*interval_triton.TILES.values(), *prefill_triton.TILES.values()]
    for tiles in (*shipped, interval_triton.FLOAT32_TILES):
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
        beside_gluon = case.warp_groups or case.kernel.__name__.startswith("repair_")
        if "HEAD_DIM" in case.arguments and not beside_gluon:
            compiled[case.kernel.__name__].append(case.arguments)
    assert len(compiled) == 9
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
    prefill = compiled["prefill_forward"]
    groups = {each["GROUP"] for each in prefill}
    assert {1, 4, 8} <= groups and any(packed_heads(group) < group for group in groups)
    assert any(each["key_heads"] == 1 for each in prefill)
    rows = {each["ROWS"] for each in compiled["decode_split"]}
    assert rows == {16, 32}


def test_gluon_attention_is_compiled_with_every_head_dim_mask_and_number_of_packed_heads():
    kernels = gluon_compilations.KERNELS
    assert {direction for direction, _ in GLUON_TILES} == set(kernels)
    for direction, kernel in kernels.items():
        cases = [case for case in aot.compilations() if case.kernel is kernel]
        for case in cases:
            tiles = GLUON_TILES[direction, case.arguments["HEAD_DIM"]]
            assert case.arguments["STAGES"] == tiles.stages and case.warp_groups is not None
        # A tile of keys packs no heads, and the size of a group is a number like any other.
        counts = ("GROUP",) if "GROUP" in kernel.arg_names else ()
        compiled = {
            tuple(case.arguments[name] for name in ("HEAD_DIM", "CAUSAL", *counts))
            for case in cases
            if case.configuration.startswith("bf16")
        }
        groups = ((1, 2, 4, 8),) if counts else ()
        assert compiled >= set(product((64, 128), (True, False), *groups))
        assert any(case.configuration.startswith("fp16") for case in cases)
        if counts:
            heads = {case.arguments["PACK"] for case in cases}
            assert heads == {1, 2, 4, 8}
            assert any(case.arguments["GROUP"] > case.arguments["PACK"] for case in cases)


def test_gluon_attention_is_compiled_with_the_layouts_that_it_is_launched_with():
    for head_dim, heads, tokens in ((64, 8, 8), (128, 1, 128), (128, 4, 16)):
        tensor = torch.empty(128, 8, head_dim, dtype=torch.bfloat16)
        layout = interval_gluon.describe(tensor, heads, tokens).layout
        block = [heads, tokens, head_dim]
        assert gluon_descriptor_type("bf16", *block) == f"tensordesc<bf16{block},{layout!r}>"


def test_kernels_of_rows_are_compiled_for_every_architecture_and_matrix_products_for_hopper():
    everywhere = {
        case.kernel.__name__ for case in aot.compilations() if len(case.architectures) > 1
    }
    assert everywhere == {
        "cosine_forward",
        "cosine_scale",
        "cross_entropy",
        "gelu_backward",
        "gelu_forward",
        "pool_backward",
        "pool_forward",
        "scale",
    }
    assert len(ROW_OPERATIONS) == 5  # those that launch these eight
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
    products = [product_of(instruction) for instruction in code if instruction.name in PRODUCTS]
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
        ("gelu_forward", "bf16 by 8", 1, 20),
        ("gelu_backward", "bf16 by 8 activation bias", 2, 32),
        ("gelu_backward", "fp16 by 8 bias", 2, 32),
    ],
)
def test_gelu_moves_16_bytes_at_a_time_and_takes_few_instructions(
    kernel, configuration, exponentials, most
):
    """The slow unit once for the tail and once for the slope, and no element twice.

    Of an element of 4 bytes memory takes as long as 37 instructions, of one of 6 bytes 55.
    """
    [case] = [
        case
        for case in mlp_triton.compilations()
        if (case.kernel.__name__, case.configuration) == (kernel, configuration)
    ]
    used = aot.compile_ahead(case, 90)
    elements = 2048 // (32 * case.num_warps)  # of a thread, in a step
    assert (used.loads.bits, used.stores.bits) == (128, 128)
    assert used.stretch.exponentials == exponentials * elements
    assert used.stretch.instructions < most * elements


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
    serialised = (
        "wgmma.mma_async instructions are serialized due to insufficient register resources"
    )
    assert aot.faults(case, used) == [f"spills {used.stack} bytes", f"ptxas: {serialised}"]


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


def test_the_reason_is_that_of_the_function_at_fault(monkeypatch):
    """Not of those that call it, which Triton tells last, and of a Gluon kernel without words."""

    def refuse(*_, **__):
        try:
            raise NameError("first is not defined")
        except NameError as error:
            raise RuntimeError("at 7:4:\n    gl.warp_specialize(\n    ^") from error

    monkeypatch.setattr(triton, "compile", refuse)
    with pytest.raises(aot.CompileError, match="^first is not defined$"):
        aot.compile_ahead(a_forward_configuration(), 90)


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
