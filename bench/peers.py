"""Who computes attention of packed rows: ours and every peer, each with why it may be absent."""

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from bench.documents import PackedRow
from metamorph_kernels import interval_attention, interval_attention_fp8
from metamorph_kernels.absence import triton_absence

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q [T, Hq, D], k and v [T, Hkv, D] to out


@dataclass(frozen=True)
class Provider:
    """`prepare(row, device)` does all that depends on the lengths only and returns the attention.

    `absence(device)` says why it cannot run there, or None; `no_backward(device)` likewise.
    """

    name: str
    prepare: Callable[[PackedRow, torch.device], Attend]
    absence: Callable[[torch.device], str | None]
    masks: tuple[str, ...] = ("spans", "documents", "one document")
    no_backward: Callable[[torch.device], str | None] = lambda device: None
    most_tokens: int | None = None
    float8: bool = False  # or all products in the dtype of the inputs

    def reason(self, row: PackedRow, device: torch.device) -> str | None:
        """Why it cannot compute this row on this device, or None where it can."""
        if row.mask not in self.masks:
            return "only one causal document" if len(self.masks) == 1 else "only causal masks"
        if self.most_tokens is not None and row.tokens > self.most_tokens:
            return f"a T x T mask; run up to {self.most_tokens} tokens"
        return self.absence(device)


def gpu_package(module: str) -> Callable[[torch.device], str | None]:
    """A probe: is `module` importable, and is this a GPU?"""

    def absence(device: torch.device) -> str | None:
        if device.type != "cuda":
            return "needs a GPU"
        try:
            importlib.import_module(module)
        except Exception as error:  # a package built for another torch fails in its own ways
            top = module.partition(".")[0]
            if importlib.util.find_spec(top) is None:
                return "not installed"
            return f"{type(error).__name__}: {error}"
        return None

    return absence


def _always(device: torch.device) -> None:
    return None


def _triton(row: PackedRow, device: torch.device) -> Attend:
    intervals = row.intervals(device)
    return lambda q, k, v: interval_attention(q, k, v, intervals, impl="triton")


def in_torch(row: PackedRow, device: torch.device) -> Attend:
    """Plain PyTorch, document by document: the yardstick of all but `ours fp8`."""
    intervals = row.intervals(device)
    return lambda q, k, v: interval_attention(q, k, v, intervals, impl="torch")


def _fp8(row: PackedRow, device: torch.device) -> Attend:
    intervals = row.intervals(device)
    impl = "triton" if device.type == "cuda" else "torch"
    return lambda q, k, v: interval_attention_fp8(q, k, v, intervals, impl=impl)


def float8_in_torch(row: PackedRow, device: torch.device) -> Attend:
    """What plain PyTorch makes of the same roundings: the yardstick of `ours fp8`."""
    intervals = row.intervals(device)
    return lambda q, k, v: interval_attention_fp8(q, k, v, intervals, impl="torch")


def block_mask_builder(row: PackedRow, device: torch.device) -> Callable:
    """FlexAttention's mask of this row in the cheapest form we know: two loads for a query."""
    intervals, tokens = row.intervals(device), row.tokens
    row_start, row_end = intervals.row_start, intervals.row_end

    def visible(batch, head, query, key):
        return (row_start[query] <= key) & (key < row_end[query])

    def build(create=create_block_mask):
        return create(visible, None, None, tokens, tokens, device=device)

    return build


def _flex(row: PackedRow, device: torch.device) -> Attend:
    mask = block_mask_builder(row, device)()
    # On a CPU this is a rehearsal, and compiling would take most of it.
    flex = torch.compile(flex_attention) if device.type == "cuda" else flex_attention

    def attend(q, k, v):
        return _tokens_first(flex(*_heads_first(q, k, v), block_mask=mask, enable_gqa=True))

    return attend


def _dense_mask(row: PackedRow, device: torch.device) -> Attend:
    intervals = row.intervals(device)
    key = torch.arange(row.tokens, device=device)
    mask = (intervals.row_start[:, None] <= key) & (key < intervals.row_end[:, None])

    def attend(q, k, v):
        # Repeated keys, as transformers does: grouped queries and a mask leave only the slow path.
        return _tokens_first(
            F.scaled_dot_product_attention(*_heads_first(q, *_repeated(q, k, v)), mask)
        )

    return attend


def _cudnn(row: PackedRow, device: torch.device) -> Attend:
    def attend(q, k, v):
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return _tokens_first(
                F.scaled_dot_product_attention(
                    *_heads_first(q, k, v), is_causal=True, enable_gqa=True
                )
            )

    return attend


def _flash(module: str) -> Callable[[PackedRow, torch.device], Attend]:
    def prepare(row, device):
        function = importlib.import_module(module).flash_attn_varlen_func
        bounds, longest = _bounds(row, device), max(row.lengths)

        def attend(q, k, v):
            out = function(
                q,
                k,
                v,
                cu_seqlens_q=bounds,
                cu_seqlens_k=bounds,
                max_seqlen_q=longest,
                max_seqlen_k=longest,
                causal=True,
            )
            return out[0] if isinstance(out, tuple) else out  # some versions add the lse

        return attend

    return prepare


def _varlen(row: PackedRow, device: torch.device) -> Attend:
    from torch.nn.attention.varlen import varlen_attn

    bounds, longest = _bounds(row, device), max(row.lengths)
    # torch 2.11 takes grouped queries as they are, later versions want to be told.
    grouped = "enable_gqa" in inspect.signature(varlen_attn).parameters
    options = {"enable_gqa": True} if grouped else {}
    return lambda q, k, v: varlen_attn(
        q, k, v, bounds, bounds, longest, longest, window_size=(-1, 0), **options
    )


def _xformers(row: PackedRow, device: torch.device) -> Attend:
    from xformers.ops import memory_efficient_attention
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalMask

    bias = BlockDiagonalCausalMask.from_seqlens(list(row.lengths))

    def attend(q, k, v):
        k, v = _repeated(q, k, v)  # its grouped form has no backward
        return memory_efficient_attention(q[None], k[None], v[None], attn_bias=bias)[0]

    return attend


def _heads_first(*tensors: Tensor) -> list[Tensor]:
    return [tensor.transpose(0, 1)[None] for tensor in tensors]  # [1, H, T, D]


def _tokens_first(out: Tensor) -> Tensor:
    return out[0].transpose(0, 1)


def _repeated(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    return [tensor.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for tensor in (k, v)]


def _bounds(row: PackedRow, device: torch.device) -> Tensor:
    """int32 [documents + 1]: where each begins, and the end of the row."""
    return torch.tensor([0, *accumulate(row.lengths)], dtype=torch.int32, device=device)


CAUSAL = ("documents", "one document")
PROVIDERS = (
    Provider("ours triton", _triton, lambda device: triton_absence(device.type)),
    Provider("ours torch", in_torch, _always),
    Provider(
        "ours fp8",
        _fp8,
        lambda device: triton_absence("cuda") if device.type == "cuda" else None,
        no_backward=lambda device: "forward only",
        float8=True,
    ),
    Provider(
        "FlexAttention",
        _flex,
        _always,
        no_backward=lambda device: "no backward on a CPU" if device.type == "cpu" else None,
    ),
    Provider("SDPA dense mask", _dense_mask, _always, most_tokens=8192),
    Provider("SDPA cuDNN", _cudnn, gpu_package("torch"), masks=("one document",)),
    Provider("varlen_attn", _varlen, gpu_package("torch.nn.attention.varlen"), masks=CAUSAL),
    Provider("flash-attn 2", _flash("flash_attn"), gpu_package("flash_attn"), masks=CAUSAL),
    Provider(
        "flash-attn 3",
        _flash("flash_attn_interface"),
        gpu_package("flash_attn_interface"),
        masks=CAUSAL,
    ),
    Provider(
        "flash-attn 4", _flash("flash_attn.cute"), gpu_package("flash_attn.cute"), masks=CAUSAL
    ),
    Provider("xformers", _xformers, gpu_package("xformers.ops"), masks=CAUSAL),
)
