"""The C++ ops of csrc/cpu/: where their library is, why it may be absent, and Python functions.

The library stands beside this file if it was built; it is loaded when first asked for. It holds
code for several levels of vector instructions, and takes the best that the processor has. The ops
have no autograd. All functions raise ValueError where the library cannot run.
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
    _require()
    columns = map(neighbouring_columns, (q, k_cache, v_cache))
    return torch.ops.metamorph_cpu_ops.decode_attention(*columns, lengths, scale)


def prefill_attention_cpp(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, visible: Tensor, blocks: Tensor, scale: float
) -> Tensor:
    """`prefill_attention` of float32 or bfloat16 tensors on a CPU; nothing is differentiated.

    q [T, Hq, D]; caches [B, S, Hkv, D], at any strides but of columns, as above; of a `PrefillRow`
    visible int32 [T] and blocks int32 [blocks, 3], dense. Returns [T, Hq, D]; zeros for a token
    that sees nothing or is in no block. Sums are in float32. The key heads of all blocks are shared
    out to torch's threads.

    Raises RuntimeError for tensors that do not fit, and for blocks and numbers of keys outside of
    row and caches.
    """
    _require()
    columns = map(neighbouring_columns, (q, k_cache, v_cache))
    return torch.ops.metamorph_cpu_ops.prefill_attention(*columns, visible, blocks, scale)


def runs_in_cpp(x: Tensor) -> bool:
    """Whether the functions below take `x`: float32 on a CPU, and nothing is differentiated."""
    fits = x.is_cpu and x.dtype == torch.float32 and not torch.is_grad_enabled()
    return fits and cpp_absence("cpu") is None


def rotate_cpp(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """x cos + roll(x, D / 2) sin of the first `heads` of x [T, H, D], dense within a token.

    cos and sin [T, 1, D]. All float32; returns [T, heads, D]. RuntimeError for tensors that do not
    fit, and for an odd D.
    """
    _require()
    return torch.ops.metamorph_cpu_ops.rotate(x, cos, sin, heads)


def rms_norm_cpp(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Each row of x [T, H] over the root of its mean square and eps, times weight [H], float32.

    RuntimeError for tensors that do not fit.
    """
    _require()
    return torch.ops.metamorph_cpu_ops.rms_norm(x, weight, eps)


def swiglu_cpp(gate_up: Tensor) -> Tensor:
    """silu(gate) up of gate_up [T, 2 F], float32, in which gate stands before up; returns [T, F].

    RuntimeError for a tensor that does not fit.
    """
    _require()
    return torch.ops.metamorph_cpu_ops.swiglu(gate_up)


def linear_cpp(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias of a few rows x [M, I], float32, for a weight [O, I] that is stored column
    after column, and is not copied, as x is where its columns are no neighbours; bias [O] or None.
    Returns [M, O].

    RuntimeError for tensors that do not fit, and for a weight that is stored otherwise.
    """
    _require()
    return torch.ops.metamorph_cpu_ops.linear(neighbouring_columns(x), weight, bias)


def store_cpp(
    keys: Tensor, values: Tensor, sequences: Tensor, places: Tensor, k: Tensor, v: Tensor
) -> None:
    """Copies k and v [N, Hkv, D] to (sequences [N], places [N]) of the caches [B, S, Hkv, D].

    Indices are int64, dense; of the others the columns. RuntimeError for tensors that do not fit,
    and for indices outside the caches.
    """
    _require()
    torch.ops.metamorph_cpu_ops.store(keys, values, sequences, places, k, v)


def emit_greedy_cpp(
    logits: Tensor,
    vectors: Tensor,
    effects: Tensor,
    image_end: int,
    counts: Tensor,
    lengths: Tensor,
    cursor: Tensor,
    tokens_history: Tensor,
    best_history: Tensor,
    vectors_history: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a greedy step of generation emits for each of B sequences, and does to them in place.

    logits [B, V] and vectors [B, C] are predicted; `effects` int64 [2, V] are what a token needs
    and begins. `counts` int64 [5, B] has alive, left and room in its first rows, as `Slots` has
    them; lengths int64 [B]. Line `cursor`, int64 [1], which is then the next one, of the histories:
    tokens int64 [steps, B], best logits [steps, B], vectors [steps, B, C]. Where no dtype is named,
    it is float32.

    Returns token ids int64 [B], whether vectors take their place, bool [B, 1], and int64 [B] each
    the places of what is fed next and the numbers of keys that it sees. RuntimeError, before
    anything is written, for tensors that do not fit.
    """
    _require()
    return torch.ops.metamorph_cpu_ops.emit_greedy.default(
        *(logits, vectors, effects, image_end, counts, lengths, cursor),
        *(tokens_history, best_history, vectors_history),
    )


def _require() -> None:
    reason = cpp_absence("cpu")
    if reason is not None:
        raise ValueError(f"the C++ library cannot run here: {reason}")


@cache
def _load() -> str | None:
    """Load the library; why that failed, or None."""
    return load_library(LIBRARY, "METAMORPH_CPU", "metamorph_cpu_ops", FAKES)


def _fake_attention(q: Tensor, *others: Tensor | float) -> Tensor:
    return q.new_empty(q.shape)


def _fake_emit_greedy(
    logits: Tensor, vectors: Tensor, effects: Tensor, image_end: int, counts: Tensor,
    lengths: Tensor, *others: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    token, places, visible = (lengths.new_empty(lengths.shape) for _ in range(3))
    return token, lengths.new_empty((*lengths.shape, 1), dtype=torch.bool), places, visible


FAKES = {
    "decode_attention": _fake_attention,
    "prefill_attention": _fake_attention,
    "rotate": lambda x, cos, sin, heads: x.new_empty(x.shape[0], heads, x.shape[2]),
    "rms_norm": lambda x, weight, eps: x.new_empty(x.shape),
    "swiglu": lambda gate_up: gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2),
    "linear": lambda x, weight, bias=None: x.new_empty(x.shape[0], weight.shape[0]),
    "emit_greedy": _fake_emit_greedy,
    "store": lambda keys, values, sequences, places, k, v: None,
}
