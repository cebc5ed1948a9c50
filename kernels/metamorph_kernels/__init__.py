"""Fused ops for visual-predictive instruction tuning; importable with nothing but PyTorch.

Beside the ops: who can run them (`probe` and the functions that give a reason; HOPPER and ROWS are
what matrix products and kernels of rows in Triton ask of a GPU), and what programs around them need
(`send`, `without_autocast`, `tokens_read`, the sizes of chunks; what stands between the products
of a layer on a CPU, where `runs_in_cpp`).
"""

from typing import TYPE_CHECKING

from metamorph_kernels.absence import HOPPER, ROWS, gpu_absence, triton_absence
from metamorph_kernels.arguments import without_autocast
from metamorph_kernels.attention.decode import decode_attention, decode_attention_on_host
from metamorph_kernels.attention.fp8 import interval_attention_fp8
from metamorph_kernels.attention.interval import interval_attention
from metamorph_kernels.attention.prefill import prefill_attention
from metamorph_kernels.backends import probe
from metamorph_kernels.cpu_library import (
    cpp_absence,
    emit_greedy_cpp,
    linear_cpp,
    rms_norm_cpp,
    rotate_cpp,
    runs_in_cpp,
    store_cpp,
    swiglu_cpp,
)
from metamorph_kernels.cuda_library import cuda_absence
from metamorph_kernels.intervals import Intervals, intervals_from_rows, key_intervals
from metamorph_kernels.linear.float8_linear import linear_fp8, linears_fp8, mlp_gelu_fp8
from metamorph_kernels.linear.mlp import MLPGelu, mlp_gelu
from metamorph_kernels.losses.chunks import GRADIENT_BYTES_AT_ONCE, LOGITS_AT_ONCE
from metamorph_kernels.losses.cosine import cosine_loss
from metamorph_kernels.losses.cross_entropy import LinearCrossEntropy, linear_cross_entropy
from metamorph_kernels.losses.linear_cosine import LinearCosineLoss, linear_cosine_loss
from metamorph_kernels.prefill_rows import PrefillRow, prefill_row
from metamorph_kernels.rows.pooling import pool_normalize, tokens_read
from metamorph_kernels.transfer import send

if TYPE_CHECKING:
    from metamorph_kernels.transformers_attention import register_with_transformers

__version__ = "0.1.0"
__all__ = [
    "GRADIENT_BYTES_AT_ONCE",
    "HOPPER",
    "LOGITS_AT_ONCE",
    "ROWS",
    "Intervals",
    "LinearCosineLoss",
    "LinearCrossEntropy",
    "MLPGelu",
    "PrefillRow",
    "cosine_loss",
    "cpp_absence",
    "cuda_absence",
    "decode_attention",
    "decode_attention_on_host",
    "emit_greedy_cpp",
    "gpu_absence",
    "interval_attention",
    "interval_attention_fp8",
    "intervals_from_rows",
    "key_intervals",
    "linear_cosine_loss",
    "linear_cpp",
    "linear_cross_entropy",
    "linear_fp8",
    "linears_fp8",
    "mlp_gelu",
    "mlp_gelu_fp8",
    "pool_normalize",
    "prefill_attention",
    "prefill_row",
    "probe",
    "register_with_transformers",
    "rms_norm_cpp",
    "rotate_cpp",
    "runs_in_cpp",
    "send",
    "store_cpp",
    "swiglu_cpp",
    "tokens_read",
    "triton_absence",
    "without_autocast",
]


def __getattr__(name: str):
    """Imports on first use what needs torch.compile, whose import takes as long as torch's."""
    if name != "register_with_transformers":
        raise AttributeError(f"module 'metamorph_kernels' has no attribute {name!r}")
    from metamorph_kernels.transformers_attention import register_with_transformers

    return register_with_transformers
