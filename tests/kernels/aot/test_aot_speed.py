"""The model of speed: its arithmetic, and that docs/kernels.md shows what it says."""

from dataclasses import replace
from pathlib import Path

import pytest
import triton

from metamorph_kernels.aot import Resources, Stretch
from metamorph_kernels.aot.speed import ENTRIES, Entry, clocks, expected, table
from metamorph_kernels.compilation import Compilation

PAGE = Path(__file__).parents[3] / "docs/kernels.md"
INNER = Stretch(
    is_loop=True, instructions=500, outside=4000, products=16, flops=2 * 64 * 128 * 128 * 2,
    is_eight_bit=False, moved_bytes=0, exponentials=66, arithmetic=300, overlapped=0,
    tma_bytes=65_536, barriers=3, leaves_in_flight=False,
)  # fmt: skip
ONE_BLOCK = Resources(registers=240, stack=0, shared=200_000, wgmma=True, tma=True, stretch=INNER)
CASE = Compilation(None, "", {}, num_warps=8, num_stages=3)
ENTRY = Entry("kernel", "configuration")


def test_a_block_that_waits_at_once_takes_turns_with_its_products():
    model = clocks(ENTRY, CASE, ONE_BLOCK)
    assert model.tensor == 2048  # two warp groups
    assert model.issue == 500 * 8 / 4 and model.mufu == 66 * 8 * 32 / 16
    assert model.total == 2048 + 1056 and model.bound == "tensor + mufu"
    assert expected(ENTRY, CASE, ONE_BLOCK) == f"{0.82 * 2048 / 3104 * 989.4:.0f} TFLOP/s"


def test_two_blocks_hide_each_others_waits():
    pair = replace(ONE_BLOCK, registers=128, shared=100_000)
    model = clocks(ENTRY, CASE, pair)
    assert model.total == model.tensor == 4096 and model.bound == "tensor"


def test_an_epilogue_counts_where_one_block_has_nobody_to_hide_it():
    steps = replace(ENTRY, steps=10)
    products = replace(ONE_BLOCK, stretch=replace(INNER, arithmetic=0, exponentials=0))
    products = replace(products, stretch=replace(products.stretch, overlapped=1))
    assert clocks(steps, CASE, products).epilogue == 4000 * 8 / 4 / 10
    pair = replace(products, registers=128, shared=100_000)
    assert clocks(steps, CASE, pair).epilogue == 0


def test_eight_bit_products_take_half_the_clocks():
    narrow = replace(ONE_BLOCK, stretch=replace(INNER, is_eight_bit=True))
    assert clocks(ENTRY, CASE, narrow).tensor == 1024


def test_a_kernel_without_products_is_compared_to_a_copy():
    rows = replace(INNER, products=0, flops=0, moved_bytes=16 * 32 * 8, tma_bytes=0)
    moving = replace(ONE_BLOCK, stretch=rows)
    model = clocks(ENTRY, CASE, moving)
    assert model.bound == "hbm" and expected(ENTRY, CASE, moving) == "100% of a copy"
    busy = replace(moving, stretch=replace(rows, instructions=5000))
    assert clocks(ENTRY, CASE, busy).bound == "issue"
    assert int(expected(ENTRY, CASE, busy).partition("%")[0]) < 50


def test_a_configuration_that_is_not_shipped_is_refused():
    with pytest.raises(ValueError, match="no such configurations: .*wider"):
        table([Entry("attention_forward", "wider")])


@pytest.mark.slow
@pytest.mark.skipif(triton.__version__ != "3.7.1", reason="the page is of one compiler's code")
def test_the_page_shows_what_the_model_says():
    shown = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    written = [line for line in table(ENTRIES)[2:]]
    assert [line for line in shown if line in written] == written
