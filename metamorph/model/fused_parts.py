"""Parts of the model that other libraries can compute: attention, RMSNorm, rotation, SwiGLU.

Modules, parameters and the state dict stay as they are. A module holds the function that computes
it, and a chosen library's function, here with the signature of ours, takes its place:

    parts = choose_parts(config.model, device)
    install_parts(model, parts, device, torch.bfloat16)

Generation runs the same modules, but attends by `interval_attention` and `decode_attention`: its
prompts may hold bidirectional images, which no other library here can compute.
"""

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from metamorph.config import ModelConfig
from metamorph.errors import UserError
from metamorph.libraries import first_line, require
from metamorph.model.language import Attention, GatedMLP, RMSNorm, SelfAttention, rotary_tables
from metamorph.model.language_config import LanguageConfig
from metamorph.model.unified import MetaMorph
from metamorph_kernels import Intervals, key_intervals, send, without_autocast

OURS = ("interval", "torch")


def flash_attn_row(module: str, intervals: Intervals) -> Attention:
    """Attention of a causal row by flash-attn 2 (`flash_attn`), 3 (`flash_attn_interface`) or 4
    (`flash_attn.cute`).

    float16 or bfloat16. Its backward adds in any order, unless
    `torch.use_deterministic_algorithms(True)`. Raises ValueError for intervals that are not causal.
    """
    bounds, longest = _bounds("flash_attn", intervals)
    varlen = importlib.import_module(module).flash_attn_varlen_func

    def attention(layer_index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = varlen(
            q,
            k,
            v,
            cu_seqlens_q=bounds,
            cu_seqlens_k=bounds,
            max_seqlen_q=longest,
            max_seqlen_k=longest,
            causal=True,
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
        return out[0] if isinstance(out, tuple) else out  # 4 and early versions of 3 add the lse

    return attention


def varlen_row(intervals: Intervals) -> Attention:
    """Attention of a causal row by PyTorch's `varlen_attn`, which is flash-attn 2 unless the
    program activated another (`torch.nn.attention.activate_flash_attention_impl`).

    Dtypes, order of sums and ValueError as in `flash_attn_row`.
    """
    bounds, longest = _bounds("varlen", intervals)
    varlen = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    options: dict[str, Any] = {"window_size": (-1, 0)}  # keys before a query and after, -1 for all
    if "enable_gqa" in inspect.signature(varlen).parameters:  # torch 2.11 does not want to be told
        options["enable_gqa"] = True

    def attention(layer_index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return varlen(q, k, v, bounds, bounds, longest, longest, **options)

    return attention


def xformers_row(intervals: Intervals) -> Attention:
    """Attention of a causal row by xformers. ValueError for intervals that are not causal."""
    from xformers.ops import memory_efficient_attention
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalMask

    lengths = list(_causal_lengths("xformers", intervals))
    bias = BlockDiagonalCausalMask.from_seqlens(lengths, device=intervals.row_start.device)

    def attention(layer_index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        group = q.shape[1] // k.shape[1]  # each key head as often: grouped, it has no backward
        k, v = (heads.repeat_interleave(group, dim=1) for heads in (k, v))  # [T, Hq, D]
        return memory_efficient_attention(q[None], k[None], v[None], attn_bias=bias)[0]

    return attention


def _bounds(name: str, intervals: Intervals) -> tuple[Tensor, int]:
    """Where the documents of a causal row begin and end, int32 [documents + 1], and the longest."""
    lengths = _causal_lengths(name, intervals)
    bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    return send(bounds, intervals.row_start.device), max(lengths)


def _causal_lengths(name: str, intervals: Intervals) -> tuple[int, ...]:
    if not all(intervals.plain_documents):
        raise ValueError(
            f"intervals: {name} computes documents that are causal from their first token on, "
            f"no bidirectional spans or windows; model.attention: interval takes any"
        )
    return intervals.document_lengths


def apex_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`language.rms_norm` by apex; x and weight in one dtype, on a GPU."""
    # Not the module: that one computes in PyTorch, unasked, where torch.compile traces it.
    from apex.normalization.fused_layer_norm import fused_rms_norm_affine

    with without_autocast(x):  # under autocast it would round the residual stream to 16 bits
        return fused_rms_norm_affine(x, weight, weight.shape, eps)


def liger_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`language.rms_norm` by Liger-Kernel, rounded where Llama of transformers rounds."""
    from liger_kernel.ops import LigerRMSNormFunction

    offset, in_place = 0.0, False  # in place, its backward overwrites a gradient it did not make
    return LigerRMSNormFunction.apply(x, weight, eps, offset, "llama", in_place)


def liger_rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """`language.rotate` by Liger-Kernel, which overwrites q and k with the result."""
    from liger_kernel.ops import LigerRopeFunction

    # It takes heads before tokens, as a view, and tables [1, T, D] of two equal halves.
    cos, sin = (torch.cat((x, x), dim=-1).transpose(0, 1).to(q.dtype) for x in (cos, sin))
    q, k = LigerRopeFunction.apply(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos, sin)
    return q[0].transpose(0, 1), k[0].transpose(0, 1)


def liger_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`language.swiglu` by Liger-Kernel, whose backward overwrites gate and up: it runs once."""
    from liger_kernel.ops import LigerSiLUMulFunction

    return LigerSiLUMulFunction.apply(gate, up)


HOLDERS = {  # key of ModelConfig: the modules that hold such a function, and under which name
    "attention": (MetaMorph, "row_attention"),
    "rms_norm": (RMSNorm, "compute"),
    "rotary": (SelfAttention, "rotate"),
    "swiglu": (GatedMLP, "activate"),
}
FUNCTIONS = {  # key, its value: the distributions that can compute it, best first
    ("attention", "flash_attn"): {
        "flash-attn-3": partial(flash_attn_row, "flash_attn_interface"),
        "flash-attn": partial(flash_attn_row, "flash_attn"),
    },
    ("attention", "flash_attn_4"): {"flash-attn-4": partial(flash_attn_row, "flash_attn.cute")},
    ("attention", "varlen"): {"torch-varlen": varlen_row},
    ("attention", "xformers"): {"xformers": xformers_row},
    ("rms_norm", "apex"): {"apex": apex_rms_norm},
    ("rms_norm", "liger"): {"liger-kernel": liger_rms_norm},
    ("rotary", "liger"): {"liger-kernel": liger_rotate},
    ("swiglu", "liger"): {"liger-kernel": liger_swiglu},
}


def choose_parts(choice: ModelConfig, device: torch.device) -> dict[str, Callable]:
    """The functions that `choice` asks other libraries for, by key; what is ours is left out.

    Raises UserError, naming the key and the reason, for a library that cannot be used on `device`.
    """
    parts = {}
    for key in HOLDERS:
        name = getattr(choice, key)
        if name not in OURS:
            functions = FUNCTIONS[key, name]
            parts[key] = functions[require(f"model.{key}: {name}", list(functions), device)]
    return parts


def install_parts(
    model: MetaMorph, parts: dict[str, Callable], device: torch.device, dtype: torch.dtype
) -> None:
    """Let `parts`, from `choose_parts`, compute in `model`.

    Each first computes a small row forward and backward on `device`, where activations will be of
    `dtype`. Raises UserError, naming the key and the reason, for one that cannot.
    """
    for key, function in parts.items():
        try:
            _try(key, function, model.config.language, device, dtype)
        except Exception as error:  # another library's: it may be anything
            raise UserError(
                f"model.{key}: the library cannot compute this model in {dtype} "
                f"({first_line(error)}); see docs/libraries.md"
            ) from error
        kind, name = HOLDERS[key]
        for module in model.modules():
            if isinstance(module, kind):
                setattr(module, name, function)


def _try(
    key: str, function: Callable, config: LanguageConfig, device: torch.device, dtype: torch.dtype
) -> None:
    intervals = key_intervals([5, 3], device=device)
    tokens = torch.arange(len(intervals.row_start), device=device)

    def row(*shape: int) -> Tensor:
        leaf = torch.ones(len(tokens), *shape, device=device, dtype=dtype, requires_grad=True)
        return leaf * 1  # as in the model, where none is a leaf: some are overwritten

    q = row(config.num_attention_heads, config.head_dim)
    k, v = (row(config.num_key_value_heads, config.head_dim) for _ in range(2))
    if key == "attention":
        results = [function(intervals)(0, q, k, v)]
    elif key == "rms_norm":
        results = [function(row(config.hidden_size), row(config.hidden_size)[0], 1e-5)]
    elif key == "rotary":
        results = function(q, k, *rotary_tables(tokens, config, dtype))
    else:
        results = [function(row(config.intermediate_size), row(config.intermediate_size))]
    torch.autograd.backward(results, [torch.ones_like(result) for result in results])
