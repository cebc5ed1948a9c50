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
    operand_bytes=80 * 1024, is_eight_bit=False, moved_bytes=0, exponentials=66, arithmetic=300,
    overlapped=0, tma_bytes=65_536, barriers=3, leaves_in_flight=False, consumers=1,
)  # fmt: skip
ONE_BLOCK = Resources(
    registers=240, stack=0, shared=200_000, wgmma=True, tma=True, warps=8, stretch=INNER
)
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


def test_shared_memory_may_bind():
    """Of narrow tiles, of which each product reads all of its rows anew."""
    model = clocks(ENTRY, CASE, ONE_BLOCK)
    assert model.shared == (2 * 80 * 1024 + 65_536) / 128 == 1792
    reading = replace(ONE_BLOCK, stretch=replace(INNER, operand_bytes=200 * 1024))
    model = clocks(ENTRY, CASE, reading)
    assert model.total == model.shared == 3712 and model.bound == "shared"
    consumers = replace(reading, stretch=replace(reading.stretch, consumers=2, overlapped=300))
    assert clocks(ENTRY, replace(CASE, num_warps=4), consumers).bound == "shared"


def test_eight_bit_products_take_half_the_clocks():
    narrow = replace(ONE_BLOCK, stretch=replace(INNER, is_eight_bit=True))
    assert clocks(ENTRY, CASE, narrow).tensor == 1024


def test_consumers_fill_each_others_waits_but_for_what_is_under_no_product():
    """The producer's warp group issues nothing that counts."""
    case = replace(CASE, num_warps=4)
    inner = replace(INNER, consumers=2, instructions=400, overlapped=200)
    block = replace(ONE_BLOCK, registers=168, warps=12, stretch=inner)
    model = clocks(ENTRY, case, block)
    assert model.tensor == 2 * 1024 and model.mufu == 66 * 8 * 32 / 16
    assert model.issue == 400 * 8 / 4 and model.l2 > 0
    exposed = (1 - 200 / 300) * 66 * 4 * 32 / 16
    assert model.total == pytest.approx(2048 + exposed) and model.bound == "tensor"
    assert expected(ENTRY, case, block) == f"{0.70 * 2048 / (2048 + exposed) * 989.4:.0f} TFLOP/s"
    late = replace(block, stretch=replace(inner, overlapped=0))
    assert clocks(ENTRY, case, late).total == 2048 + 66 * 4 * 32 / 16
    long = replace(block, stretch=replace(inner, instructions=1500))
    assert clocks(ENTRY, case, long).bound == "issue"


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
