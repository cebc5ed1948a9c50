"""The C++ ops of csrc/cpu/: where their library is, why it may be absent, and Python functions.

The library stands beside this file if it was built; it is loaded when first asked for. It holds
code for several levels of vector instructions, and takes the best that the processor has. The ops
have no autograd.
"""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from metamorph_kernels.arguments import neighbouring_columns
from metamorph_kernels.compiled_library import load_library
from metamorph_kernels.graphs import constant_in_graphs

LIBRARY = Path(__file__).with_name("metamorph_cpu_ops.abi3.so")
DTYPES = (torch.float32, torch.bfloat16)


@constant_in_graphs
def cpp_absence(device_type: str) -> str | None:
    """Why the library for CPUs cannot run on tensors of this device type, or None where it can."""
    if device_type != "cpu":
        return "C++ kernels run on a CPU only"
    return _load()


def decode_attention_cpp(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    """`decode_attention` of float32 or bfloat16 tensors on a CPU; nothing is differentiated.

    q [B, Hq, D]; caches [B, S, Hkv, D], at any strides but of columns, which are copied if they are
    no neighbours; lengths int32 or int64 [B]. Returns [B, Hq, D]. Sums are in float32. No key and
    no value behind a length is read, and no cache is copied. The key heads of all sequences are
    shared out to torch's threads, so that one sequence has no more than it has key heads.

    Raises RuntimeError for tensors that do not fit, and for lengths outside 0..S.
    """
    columns = map(neighbouring_columns, (q, k_cache, v_cache))
    return torch.ops.metamorph_cpu_ops.decode_attention(*columns, lengths, scale)


@cache
def _load() -> str | None:
    """Load the library and register the ops' fake versions; why that failed, or None."""
    reason = load_library(LIBRARY, "METAMORPH_CPU")
    if reason is None:
        torch.library.register_fake("metamorph_cpu_ops::decode_attention", _fake_decode_attention)
    return reason


def _fake_decode_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    return q.new_empty(q.shape)
