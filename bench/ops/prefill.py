"""Attention of chunks of prompts over a cache that holds what came before them."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness.comparison import Comparison
from bench.harness.providers import Provider, backend_absence, gpu_package
from bench.harness.results import Result
from bench.harness.timing import Candidate
from bench.harness.verification import error_bound, exact_attention, relative_error
from metamorph_kernels import PrefillRow, prefill_attention, prefill_row

OPERATION = "prefill attention"
INPUT_SETS = 2
Inputs = tuple[Tensor, Tensor, Tensor]  # q [T, Hq, D], caches [B, S, Hkv, D]


@dataclass(frozen=True)
class Case:
    """`count` new tokens of each sequence, behind `starts` that the cache already holds of it."""

    name: str
    starts: tuple[int, ...]
    count: int
    head_dim: int = 128
    query_heads: int = 32
    key_heads: int = 8
    dtype: torch.dtype = torch.bfloat16
    quick: bool = True

    def __str__(self) -> str:
        most, least = max(self.starts), min(self.starts)
        history = f"{most}" if most == least else f"{least} to {most}"
        return (
            f"{len(self.starts)} chunks of {self.count} tokens behind {history}, "
            f"{self.query_heads}:{self.key_heads} heads of {self.head_dim}, "
            f"{str(self.dtype).removeprefix('torch.')}"
        )

    @property
    def flops(self) -> int:
        """Unmasked work only: two products of two FLOPs an element of each pair."""
        pairs = sum(
            self.count * start + self.count * (self.count + 1) // 2 for start in self.starts
        )
        return 4 * self.head_dim * self.query_heads * pairs

    def row(self, device: torch.device) -> PrefillRow:
        """Sequence after sequence."""
        pieces = [(number, start, self.count) for number, start in enumerate(self.starts)]
        return prefill_row(pieces, device=device)

    def inputs(self, device: torch.device, seed: int) -> Inputs:
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=self.dtype, device=device)

        sequences = len(self.starts)
        cache = (sequences, max(self.starts) + self.count, self.key_heads, self.head_dim)
        tokens = sequences * self.count
        return normal(tokens, self.query_heads, self.head_dim), normal(*cache), normal(*cache)

    def run(self, device: torch.device) -> list[Result]:
        """Verify every provider in the heads of two key heads, and time it."""
        inputs = [self.inputs(device, seed) for seed in range(INPUT_SETS)]
        row = self.row(device)
        group = self.query_heads // self.key_heads
        key_heads = sorted({0, self.key_heads - 1})
        query_heads = [head * group + place for head in key_heads for place in range(group)]
        q, *caches = inputs[0]
        # The cache as one run of keys, of which each query sees those of its sequence.
        k, v = (cache[:, :, key_heads].flatten(0, 1) for cache in caches)
        first_key = row.sequences * caches[0].shape[1]
        q = q[:, query_heads]
        exact, *_ = exact_attention(
            q, k, v, torch.zeros_like(q), first_key, first_key + row.visible
        )

        def error(attend: Callable[..., Tensor]) -> float:
            return relative_error(attend(*inputs[0])[:, query_heads], exact)

        plain_error = error(_ours("torch", row, self.count))
        bound = error_bound(plain_error, str(self.dtype).removeprefix("torch."))

        def candidate(prepare: Callable[[PrefillRow, int], Callable[..., Tensor]]) -> Candidate:
            attend = prepare(row, self.count)
            return Candidate(
                attend, lambda repeat: inputs[repeat % INPUT_SETS], error(attend), bound
            )

        comparison = Comparison(OPERATION, str(self))
        for provider in PROVIDERS:
            make = partial(candidate, provider.method)
            comparison.add(provider.name, make, provider.absence(device))
        return comparison.results(device, self.flops, "TFLOP/s")


def cases(device_type: str) -> list[Case]:
    """All of a device; a CPU has a tiny one in float32, to rehearse."""
    if device_type == "cpu":
        small = {"head_dim": 64, "query_heads": 4, "key_heads": 2, "dtype": torch.float32}
        return [Case("prefill-3-small", (0, 200, 37), 48, **small)]
    return [
        Case("prefill-8-512-8192", (8192,) * 8, 512),
        Case("prefill-1-512-8192", (8192,), 512),
        Case("prefill-8-512-mixed", tuple(range(0, 32768, 4096)), 512),
        Case("prefill-16-64-4096", (4096,) * 16, 64, quick=False),
        Case("prefill-8-512-8192-64", (8192,) * 8, 512, head_dim=64, quick=False),
    ]


def _ours(impl: str, row: PrefillRow, count: int) -> Callable[..., Tensor]:
    return partial(prefill_attention, row=row, impl=impl)


def _dense_mask(row: PrefillRow, count: int) -> Callable[..., Tensor]:
    """PyTorch with a mask of all chunks, made beforehand."""
    visible = row.visible.unflatten(0, (-1, count))  # [B, count]
    key = torch.arange(row.key_count, device=visible.device)
    mask = (key < visible[..., None])[:, None]  # [B, 1, count, S]

    def attend(q: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        # Repeated keys: grouped queries and a mask leave only the slow path.
        chunks = q.unflatten(0, (-1, count))
        k, v = (
            cache.repeat_interleave(q.shape[1] // cache.shape[2], dim=2).transpose(1, 2)
            for cache in (k_cache, v_cache)
        )
        out = F.scaled_dot_product_attention(chunks.transpose(1, 2), k, v, mask)
        return out.transpose(1, 2).flatten(0, 1)

    return attend


def _flash(name: str, module: str) -> Provider:
    function_name = "flash_attn_with_kvcache"

    def prepare(row: PrefillRow, count: int) -> Callable[..., Tensor]:
        function = getattr(importlib.import_module(module), function_name)
        ends = row.visible[count - 1 :: count].contiguous()  # int32 [B], the new tokens included

        def attend(q: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
            chunks = q.unflatten(0, (-1, count))
            return function(chunks, k_cache, v_cache, cache_seqlens=ends, causal=True).flatten(0, 1)

        return attend

    return Provider(name, prepare, gpu_package(module, function_name))


PROVIDERS = [
    *(
        Provider(f"ours {impl}", partial(_ours, impl), backend_absence(prefill_attention, impl))
        for impl in ("triton", "cpp", "torch")
    ),
    Provider("SDPA dense mask", _dense_mask),
    _flash("flash-attn 2", "flash_attn"),
    _flash("flash-attn 3", "flash_attn_interface"),
]
