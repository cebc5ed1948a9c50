"""What the emulator lets pass and what it does not, by kernels of a few lines."""

import pytest
import torch

from tests.kernels.emulator import language as gl
from tests.kernels.emulator.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from tests.kernels.emulator.machine import Hazard, launch
from tests.kernels.emulator.memory import Descriptor, Pointer

SEEDS = range(6)


def block(shape=(4, 4), dtype=torch.bfloat16, slots=1):
    return gl.allocate_shared_memory(dtype, [slots, *shape], None)


def barrier(count=1):
    new = gl.allocate_shared_memory(gl.int64, [1], None)
    mbarrier.init(new, count)
    return new


def matrix(seed=0):
    return torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)).bfloat16()


def fetched(source, ready, slot):
    mbarrier.expect(ready, source.block_type.nbytes)
    tma.async_copy_global_to_shared(source, [0, 0], ready, slot)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_copy_is_there_when_its_barrier_says_so(seed):
    source, found = matrix(), []

    def kernel():
        slot, ready = block().index(0), barrier()
        fetched(Descriptor(source, [4, 4]), ready, slot)
        mbarrier.wait(ready, 0)
        found.append(slot.load(None))

    launch(kernel, (), seed=seed)
    assert torch.equal(found[0], source)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("phase", [None, 1])  # no wait; one for a phase that is over long since
def test_a_copy_that_is_not_waited_for_is_a_hazard(seed, phase):
    def kernel():
        slot, ready = block().index(0), barrier()
        fetched(Descriptor(matrix(), [4, 4]), ready, slot)
        if phase is not None:
            mbarrier.wait(ready, phase)
        slot.load(None)

    with pytest.raises(Hazard, match="nobody has written|nothing says|deadlock"):
        launch(kernel, (), seed=seed)


def test_what_lies_outside_of_a_tensor_is_zero_and_not_written():
    source, target, found = matrix(), torch.ones(4, 4).bfloat16(), []

    def kernel():
        slot, ready = block().index(0), barrier()
        mbarrier.expect(ready, 32)
        tma.async_copy_global_to_shared(Descriptor(source, [4, 4]), [2, 1], ready, slot)
        mbarrier.wait(ready, 0)
        found.append(slot.load(None))
        tma.async_copy_shared_to_global(Descriptor(target, [4, 4]), [3, 0], slot)
        tma.store_wait(0)

    launch(kernel, ())
    expected = torch.zeros(4, 4).bfloat16()
    expected[:2, :3] = source[2:, 1:]
    assert torch.equal(found[0], expected)
    assert torch.equal(target[3], expected[0]) and (target[:3] == 1).all()


@pytest.mark.parametrize("expected", [16, 64])
def test_another_number_of_bytes_is_a_hazard(expected):
    """Too few, and the phase is over too early or never; too many, and it never is."""

    def kernel():
        slot, ready = block().index(0), barrier()
        mbarrier.expect(ready, expected)
        tma.async_copy_global_to_shared(Descriptor(matrix(), [4, 4]), [0, 0], ready, slot)
        mbarrier.wait(ready, 0)
        slot.load(None)

    with pytest.raises(Hazard):
        launch(kernel, ())


def test_waiting_for_each_other_is_a_deadlock_at_once():
    def one(mine, other):
        mbarrier.wait(mine, 0)
        mbarrier.arrive(other)

    def kernel():
        first, second = barrier(), barrier()
        gl.warp_specialize([(one, (first, second)), (one, (second, first))], [4], [240])

    with pytest.raises(Hazard, match="deadlock: .* waits for parity 0 of"):
        launch(kernel, ())


def test_more_arrivals_than_awaited_are_a_hazard():
    def kernel():
        ready = barrier(count=2)
        mbarrier.arrive(ready, count=3)

    with pytest.raises(Hazard, match="3 arrive where 2 were awaited"):
        launch(kernel, ())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("is_fenced", [True, False])
def test_threads_and_tma_see_each_other_through_a_fence(seed, is_fenced):
    target = torch.zeros(4, 4).bfloat16()

    def kernel():
        slot = block().index(0)
        slot.store(matrix())
        if is_fenced:
            fence_async_shared()
        tma.async_copy_shared_to_global(Descriptor(target, [4, 4]), [0, 0], slot)
        tma.store_wait(0)

    if is_fenced:
        launch(kernel, (), seed=seed)
        assert torch.equal(target, matrix())
    else:
        with pytest.raises(Hazard, match="without fence_async_shared"):
            launch(kernel, (), seed=seed)


def two_products(left, found, kernel_of_products):
    """A kernel with two products of `left` and a matrix in shared memory."""

    def kernel():
        slot = block().index(0)
        slot.store(matrix(1))
        fence_async_shared()
        zeros = torch.zeros(4, 4)
        first = warpgroup_mma(left, slot, zeros, use_acc=False, is_async=True)
        found.append(kernel_of_products(slot, first))
        warpgroup_mma_wait(0, deps=[first])

    return kernel


@pytest.mark.parametrize("seed", SEEDS)
def test_products_are_in_order_and_round_as_their_operands_do(seed):
    found, left = [], matrix()

    def second(slot, first):
        return warpgroup_mma_wait(0, deps=[warpgroup_mma(left, slot, first, is_async=True)])

    launch(two_products(left, found, second), (), seed=seed)
    assert torch.equal(found[0], 2 * (left.float() @ matrix(1).float()))
    assert found[0].dtype == torch.float32


@pytest.mark.parametrize("seed", SEEDS)
def test_sums_that_are_not_waited_for_are_not_numbers(seed):
    found = []
    launch(
        two_products(matrix(), found, lambda _, p: warpgroup_mma_wait(1, deps=[p])), (), seed=seed
    )
    assert found[0].isnan().all()


@pytest.mark.parametrize("seed", SEEDS)
def test_an_operand_must_stay_until_its_product_is_done(seed):
    def overwritten(slot, _):
        slot.store(matrix(2))

    with pytest.raises(Hazard, match="writes|reads|without fence"):
        launch(two_products(matrix(), [], overwritten), (), seed=seed)


def test_work_that_is_still_under_way_at_the_end_is_a_hazard():
    def kernel():
        slot, ready = block().index(0), barrier()
        fetched(Descriptor(matrix(), [4, 4]), ready, slot)
        mbarrier.wait(ready, 0)
        tma.async_copy_shared_to_global(Descriptor(matrix(), [4, 4]), [0, 0], slot)

    with pytest.raises(Hazard, match="1 stores not waited for"):
        launch(kernel, ())


def test_memory_past_the_end_is_a_hazard():
    numbers = torch.arange(4)

    def kernel(pointer):
        gl.load(pointer + gl.arange(0, 8), mask=gl.arange(0, 8) < 4)  # hidden: no fault
        gl.load(pointer + gl.arange(0, 8))

    with pytest.raises(Hazard, match="address 4 of 4 numbers"):
        launch(kernel, (Pointer(numbers),))


def test_a_group_that_fails_ends_the_others():
    def fails():
        raise ZeroDivisionError

    def waits(ready):
        mbarrier.wait(ready, 0)

    def kernel():
        gl.warp_specialize([(waits, (barrier(),)), (fails, ())], [1], [24])

    with pytest.raises(ZeroDivisionError):
        launch(kernel, ())
