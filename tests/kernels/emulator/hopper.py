"""`triton.experimental.gluon.language.nvidia.hopper`: barriers, TMA and warp-group products."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.kernels.emulator.language import Layout
from tests.kernels.emulator.machine import Hazard, Operation, current, wait_for_oldest
from tests.kernels.emulator.memory import Barrier, Descriptor, Shared


def fence_async_shared() -> None:
    """What the threads of this group have written may be read by TMA and products."""
    group = current()
    for region in group.machine.regions:
        if region.writer is group:
            region.needs_fence = False


def _init(barrier: Shared, count: int) -> None:
    barrier.region.barrier = Barrier(barrier.region.name, count)


def _wait(barrier: Shared, phase: Any) -> None:
    """Until the phase of this parity is over. Of an older one it is."""
    group, waited_for, parity = current(), barrier.barrier, int(phase)
    if parity not in (0, 1):
        raise Hazard(f"{group.name}: waits for parity {parity} of {waited_for.name}")
    group.give_up_turn(
        f"parity {parity} of {waited_for.name}", lambda: waited_for.phase % 2 != parity
    )
    group.know(waited_for.passed)


def _arrive(barrier: Shared, *, count: int = 1) -> None:
    group = current()
    barrier.barrier.arrive(group.published(), count)
    group.give_up_turn()


def _expect(barrier: Shared, size: int) -> None:
    """One arrives, and so many bytes are to come."""
    barrier.barrier.bytes += size
    _arrive(barrier)


mbarrier = SimpleNamespace(
    init=_init, wait=_wait, arrive=_arrive, expect=_expect, MBarrierLayout=Layout
)


def _copy_to_shared(
    descriptor: Descriptor, coordinates: list[Any], barrier: Shared, result: Shared
) -> None:
    group, signalled = current(), barrier.barrier
    coordinates = [int(place) for place in coordinates]

    def execute(copy: Operation) -> None:
        result.region.write(copy, descriptor.read(coordinates))
        signalled.arrive(copy.published(), 0, descriptor.block_type.nbytes)

    name = f"the copy of {coordinates} to {result.region.name}"
    group.machine.copies.append(Operation(name, group, execute))
    group.give_up_turn()


def _copy_to_global(descriptor: Descriptor, coordinates: list[Any], source: Shared) -> None:
    group = current()
    coordinates = [int(place) for place in coordinates]

    def execute(copy: Operation) -> None:
        descriptor.write(coordinates, source.region.read(copy))

    name = f"the copy of {source.region.name} to {coordinates}"
    group.stores.append(Operation(name, group, execute))
    group.give_up_turn()


def _store_wait(left: int) -> None:
    wait_for_oldest(current().stores, left, "its stores")


tma = SimpleNamespace(
    async_copy_global_to_shared=_copy_to_shared,
    async_copy_shared_to_global=_copy_to_global,
    store_wait=_store_wait,
)


class Product(Operation):
    """a b + c of warp groups; `value` is there when it has been executed, and NaN until then."""

    value: Tensor


def warpgroup_mma(
    a: Tensor | Shared, b: Shared, acc: "Tensor | Product", *, use_acc: bool = True,
    is_async: bool = False,
) -> "Tensor | Product":  # fmt: skip
    """Operands in shared memory are read when the product is executed."""
    group = current()

    def execute(product: Operation) -> None:
        left = a.read(product) if isinstance(a, Shared) else a
        total = left.float() @ b.read(product).float()
        if use_acc:
            # Products of a group are in order among themselves: one may go on with another's sums.
            total += acc.value if isinstance(acc, Product) else acc
        product.value = total

    product = Product(f"a product of {group.name}", group, execute)
    product.value = torch.full((a.shape[0], b.shape[1]), torch.nan)
    group.products.append(product)
    group.give_up_turn()
    return product if is_async else warpgroup_mma_wait(0, [product])


def warpgroup_mma_wait(num_outstanding: int = 0, deps: Sequence[Any] = ()) -> Any:
    """Wait until so many products are under way; sums of a product that still may be are NaN."""
    products = current().products
    wait_for_oldest(products, num_outstanding, "its products")
    values = tuple(
        dep if not isinstance(dep, Product)
        else torch.full_like(dep.value, torch.nan) if dep in products
        else dep.value
        for dep in deps
    )  # fmt: skip
    return values[0] if len(values) == 1 else values
