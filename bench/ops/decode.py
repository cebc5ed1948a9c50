"""Decoding attention over a long cache, in bytes a second: it reads each key and value once."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bench.harness.comparison import Comparison
from bench.harness.providers import Provider, gpu_package, ours
from bench.harness.results import Result
from bench.harness.timing import Candidate, captured, flush_bytes
from bench.harness.verification import error_bound, relative_error
from metamorph_kernels import decode_attention, reference

OPERATION = "decode attention"
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]  # q [B, Hq, D], caches [B, S, Hkv, D], lengths [B]


@dataclass(frozen=True)
class Case:
    """The length of each sequence; the cache is as long as the longest."""

    name: str
    lengths: tuple[int, ...]
    head_dim: int = 128
    query_heads: int = 32
    key_heads: int = 8
    dtype: torch.dtype = torch.bfloat16
    quick: bool = True

    def __str__(self) -> str:
        longest, shortest = max(self.lengths), min(self.lengths)
        keys = f"{longest} keys" if longest == shortest else f"{shortest} to {longest} keys"
        return (
            f"{len(self.lengths)} sequences of {keys}, {self.query_heads}:{self.key_heads} heads "
            f"of {self.head_dim}, {str(self.dtype).removeprefix('torch.')}"
        )

    @property
    def least_bytes(self) -> int:
        """Each visible key and value read once, queries read and results written once."""
        keys = 2 * sum(self.lengths) * self.key_heads
        queries = 2 * len(self.lengths) * self.query_heads
        return (keys + queries) * self.head_dim * self.dtype.itemsize

    def inputs(self, device: torch.device, seed: int) -> Inputs:
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=self.dtype, device=device)

        batch, cache = len(self.lengths), (max(self.lengths), self.key_heads, self.head_dim)
        return (
            normal(batch, self.query_heads, self.head_dim),
            normal(batch, *cache),
            normal(batch, *cache),
            torch.tensor(self.lengths, dtype=torch.int32, device=device),
        )

    def run(self, device: torch.device) -> list[Result]:
        """Verify every provider inside the very graph that is then replayed, and time it."""
        # Together the caches of one replay overflow the second-level cache of the GPU.
        sets = 2
        if device.type == "cuda":
            sets = max(sets, -(-flush_bytes(device) // self.least_bytes))
        inputs = [self.inputs(device, seed) for seed in range(sets)]
        q, k_cache, v_cache, lengths = inputs[0]
        exact = reference.decode_attention(q.double(), k_cache.double(), v_cache.double(), lengths)
        bound = error_bound(
            relative_error(decode_attention(*inputs[0], impl="torch"), exact),
            str(self.dtype).removeprefix("torch."),
        )

        def candidate(attend: Callable[..., Tensor]) -> Candidate:
            run, outputs = captured([partial(attend, *each) for each in inputs], device)
            run()
            error = relative_error(outputs[0], exact)
            return Candidate(run, lambda _: (), error, bound, calls=sets)

        comparison = Comparison(OPERATION, str(self))
        for provider in PROVIDERS:
            make = partial(candidate, provider.method)
            comparison.add(provider.name, make, provider.absence(device))
        return comparison.results(device, self.least_bytes, "GB/s")


def cases(device_type: str) -> list[Case]:
    """All of a device; a CPU has a tiny one to rehearse, and the quickstart's widths."""
    if device_type == "cpu":
        small = {"head_dim": 64, "query_heads": 4, "key_heads": 2, "dtype": torch.float32}
        toy = {"head_dim": 32, "query_heads": 6, "key_heads": 2, "dtype": torch.float32}
        return [
            Case("decode-3-small", (300, 7, 150), **small),
            # As long as the mixed requests of bench/runs/engine.py, half of their answers said.
            Case("decode-16-toy", tuple(288 if i % 2 else 33 + 17 * i for i in range(16)), **toy),
        ]
    return [
        Case("decode-32-8192", (8192,) * 32),
        Case("decode-1-8192", (8192,)),
        Case("decode-8-mixed", tuple(range(4096, 32769, 4096))),
        Case("decode-8-8192", (8192,) * 8, quick=False),
        Case("decode-64-8192", (8192,) * 64, quick=False),
    ]


def _flash(name: str, module: str) -> Provider:
    function_name = "flash_attn_with_kvcache"

    def attend(q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor) -> Tensor:
        function = getattr(importlib.import_module(module), function_name)
        return function(q[:, None], k_cache, v_cache, cache_seqlens=lengths)[:, 0]

    return Provider(name, attend, gpu_package(module, function_name))


PROVIDERS = [
    *ours(decode_attention, "triton", "cpp", "torch"),
    _flash("flash-attn 2", "flash_attn"),
    _flash("flash-attn 3", "flash_attn_interface"),
]
