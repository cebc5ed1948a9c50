"""Launches of the warp-specialised attention kernels on the emulator."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from metamorph_kernels import Intervals, key_intervals
from tests.kernels.emulator.loading import emulated
from tests.kernels.emulator.machine import launch
from tests.kernels.emulator.memory import Descriptor, Pointer
from tests.kernels.random_rows import random_row

ATTENTION = "metamorph_kernels.attention"
GROUPS = (1, 2, 4, 8)  # query heads of a key head
SHARED = tuple(
    f"{ATTENTION}.{name}_gluon" for name in ("pipeline", "query_tiles", "key_tiles", "gradients")
)


@cache
def kernels(name: str, *mutations: tuple[str, str]) -> ModuleType:
    """A module of `metamorph_kernels.attention` with these (old, new) texts exchanged, in it or in
    those that it shares with others."""
    return emulated((*SHARED, f"{ATTENTION}.{name}"), mutations)


@dataclass(frozen=True)
class Schedule:
    """What must not change a result: tiles, slots, how many blocks, and in what order they run."""

    seed: int = 0
    programs: int = 1
    pack: int = 1
    block_n: int = 64
    stages: int = 2
    takes_turns: bool = True


@dataclass(frozen=True)
class Heads:
    """How many of a row, and how wide."""

    query: int
    key: int
    dim: int


def random_packing(seed: int, stages: tuple[int, ...]) -> tuple[Intervals, Heads, Schedule]:
    """Packed row, heads and schedule of a seed: more and less than a tile holds."""
    generator = random.Random(seed)
    group = GROUPS[seed % 4]
    lengths, spans = random_row(seed, (20, 70, 150)[seed % 3], 4)
    schedule = Schedule(
        seed=seed,
        programs=generator.choice((1, 1, 2, 3)),
        pack=generator.choice([pack for pack in GROUPS if pack <= group]),
        block_n=generator.choice((64, 128)),
        stages=generator.choice(stages),
        takes_turns=generator.random() < 0.7,
    )
    intervals = key_intervals(lengths, spans if generator.random() < 0.5 else ())
    key_heads = 1 if group == 8 else generator.choice((1, 2))
    return intervals, Heads(key_heads * group, key_heads, (64, 128)[seed // 4 % 2]), schedule


def blocks(tensor: Tensor, heads: int, tokens: int) -> Descriptor:
    """[T, H, D] for TMA: [H, T, D] in blocks [heads, tokens, D]."""
    return Descriptor(tensor.transpose(0, 1), [heads, tokens, tensor.shape[-1]])


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    intervals: Intervals,
    schedule: Schedule,
    *mutations: tuple[str, str],
) -> tuple[Tensor, Tensor, Tensor]:
    """out [T, Hq, D], lse [Hq, T], and which tiles are not finite."""
    tokens, query_heads, head_dim = q.shape
    key_heads, pack = k.shape[1], schedule.pack
    out = torch.full_like(q, torch.nan)
    lse = torch.full((query_heads, tokens), torch.nan)
    tiles = -(-tokens // (128 // pack)) * (query_heads // pack)
    poisoned = torch.zeros(tiles, dtype=torch.int32)
    launch(
        kernels("forward_gluon", *mutations).attention_forward_gluon,
        (
            blocks(q, pack, 64 // pack),
            blocks(k, 1, schedule.block_n),
            blocks(v, 1, schedule.block_n),
            blocks(out, pack, 64 // pack),
            Pointer(lse),
            Pointer(intervals.row_start),
            Pointer(intervals.row_end),
            Pointer(torch.zeros(1, dtype=torch.int32)),
            Pointer(poisoned),
            torch.tensor(tokens, dtype=torch.int32),
            key_heads,
            head_dim**-0.5,
        ),
        programs=schedule.programs,
        seed=schedule.seed,
        GROUP=query_heads // key_heads,
        PACK=pack,
        BLOCK_N=schedule.block_n,
        HEAD_DIM=head_dim,
        STAGES=schedule.stages,
        CAUSAL=intervals.causal,
        TAKE_TURNS=schedule.takes_turns,
        CONSUMER_REGISTERS=240,
    )
    return out, lse, poisoned.bool()


class Launcher:
    """An emulated kernel in place of a compiled one, for the code that launches it."""

    def __init__(self, kernel: Callable, seed: int = 0):
        self.kernel, self.seed = kernel, seed

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def run(*arguments: Any, num_warps: int, maxnreg: int, **constants: Any) -> None:
            converted = map(_as_in_a_kernel, arguments)
            launch(self.kernel, tuple(converted), programs=grid[0], seed=self.seed, **constants)

        return run


def _as_in_a_kernel(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return Pointer(argument)
    if hasattr(argument, "block_shape"):  # a descriptor for TMA
        return Descriptor(argument.base, argument.block_shape)
    return torch.tensor(argument, dtype=torch.int32) if isinstance(argument, int) else argument
