"""What the warp-specialised attention kernels share: rings, and numbers for other warps.

A ring is a tuple (slots, full, empty): a few slots of shared memory with two barriers each. `full`
says that what the producer sent has arrived, `empty` that both consumers have read it. Whoever goes
around a ring flips the parity that it waits for.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

LOG2_E = gl.constexpr(1.4426950408889634)


@gluon.jit
def new_barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):
    """COUNT barriers, whose phases are over when so many have arrived."""
    barriers = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for place in gl.static_range(COUNT):
        mbarrier.init(barriers.index(place), count=ARRIVALS)
    return barriers


@gluon.jit
def next_slot(slot, parity, SLOTS: gl.constexpr):
    """The slot behind `slot` of a ring, and the parity of its phase."""
    slot += 1
    if slot == SLOTS:
        slot = 0
        parity ^= 1
    return slot, parity


@gluon.jit
def send(desc, head, token, ring, slot, parity, SLOTS: gl.constexpr):
    """The block of `desc` [H, T, D] at (head, token) into the next slot of a ring of blocks."""
    slots, full, empty = ring
    mbarrier.wait(empty.index(slot), parity)
    mbarrier.expect(full.index(slot), desc.block_type.nbytes)
    tma.async_copy_global_to_shared(desc, [head, token, 0], full.index(slot), slots.index(slot))
    slot, parity = next_slot(slot, parity, SLOTS)
    return slot, parity


@gluon.jit
def put_number(numbers, place, value):
    """Shared int32 numbers[place] = value, by the producer's one warp."""
    WARP: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    numbers.index(place).store(gl.full([1], value, gl.int32, WARP))


@gluon.jit
def get_number(numbers, place):
    """numbers[place], by the four warps of a consumer."""
    WARP_GROUP: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    return gl.max(numbers.index(place).load(WARP_GROUP), 0)


@gluon.jit
def pin(x):
    """x, at this place in the instructions.

    ptxas 12.8 moves a wait for products above the softmax that was to run under them. What cannot
    be moved past an instruction with a side effect stays before it, and so does what x is made of:
    the side effect is a pause that no number asks for but one NaN.
    """
    return gl.inline_asm_elementwise(
        "{ .reg .pred p; setp.eq.s32 p, $1, 0x7fffdead; @p nanosleep.u32 1; mov.b32 $0, $1; }",
        "=r,r",
        [x],
        dtype=gl.float32,
        is_pure=False,
        pack=1,
    )
