"""What makes a model fast to generate with, done once when it is opened; training never sees it.

A step of decoding is little arithmetic in many calls, so the projections of a layer that read the
same input become one, and on a CPU norms and rotation take as few calls as PyTorch allows, or one
in C++ where its library is built.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metamorph.model.language import Attention, Llama, RMSNorm, rotary_tables
from metamorph.model.language_config import LanguageConfig
from metamorph.model.unified import MetaMorph
from metamorph_kernels import (
    linear_cpp,
    mlp_gelu,
    rms_norm_cpp,
    rotate_cpp,
    runs_in_cpp,
    swiglu_cpp,
)

# One row is no faster in C++. For many, PyTorch's library may repay the copy it makes first; which
# is faster then was seen on one CPU only.
FEWEST_ROWS, MOST_ROWS = 2, 32


def lean_rms_norm(eps: float) -> Callable[..., Tensor]:
    """`language.rms_norm` for this `eps`, in fewer calls than PyTorch's own for fp32 on a CPU: that
    is no kernel there, but a composition of general parts. Elsewhere it is PyTorch's."""
    floor = torch.tensor(eps, device="cpu")

    def compute(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if not x.is_cpu or x.dtype != torch.float32 or weight.dtype != torch.float32:
            return F.rms_norm(x, weight.shape, weight, eps)
        if runs_in_cpp(x):
            return rms_norm_cpp(x, weight, eps)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # [T, 1]
        scale = torch.addcmul(floor, length, length, value=1 / x.shape[-1]).rsqrt_()
        return (x * scale).mul_(weight)

    return compute


def lean_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`; in C++ for a few rows of float32 and a weight that is stored by columns."""
    if (
        x.dim() == 2
        and FEWEST_ROWS <= x.shape[0] <= MOST_ROWS
        and weight.stride(0) == 1
        and weight.dtype == torch.float32
        and runs_in_cpp(x)
        and not torch.is_autocast_enabled("cpu")
    ):
        return linear_cpp(x, weight, bias)
    return F.linear(x, weight, bias)


class ColumnLinear(nn.Linear):
    """nn.Linear through `lean_linear`."""

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[0] == 1:  # at once: of one sequence, what is asked here takes some time
            return F.linear(input, self.weight, self.bias)
        return lean_linear(input, self.weight, self.bias)


def lean_mlp_gelu(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, **options: Any
) -> Tensor:
    """`mlp_gelu` without its checks for fp32 on a CPU, and with GELU in PyTorch's own elementwise
    kernels: `F.gelu` hands a few hundred numbers to another library."""
    if not x.is_cpu or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return mlp_gelu(x, w1, b1, w2, b2, **options)
    state = lean_linear(x, w1, b1)
    return lean_linear(torch.erf(state * math.sqrt(0.5)).add_(1).mul_(state).mul_(0.5), w2, b2)


def full_tables(
    positions: Tensor, config: LanguageConfig, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin [T, 1, D] of `positions` [T] for `MergedAttention`: both halves of a head, the
    sign of the first in sin. In `dtype`, or in that of autocast where there is one."""
    if torch.is_autocast_enabled(positions.device.type):
        dtype = torch.get_autocast_dtype(positions.device.type)
    cos, sin = rotary_tables(positions, config, dtype)  # [T, 1, D / 2]
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


class RotaryTable:
    """cos and sin of all positions of a context, so that a step only looks its own up.

    In the form that the layers of `language` take, merged or not: for `Llama.run`.
    """

    def __init__(self, language: Llama, capacity: int, *, device: torch.device, dtype: torch.dtype):
        """For positions below `capacity`; `dtype` is that of keys and queries."""
        positions = torch.arange(capacity, device=device)
        tables = language.tables(positions, language.config, dtype)
        self.tables = torch.stack(tables, dim=1)  # [capacity, 2, 1, D or D / 2]

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, [T, 1, D or D / 2] each, of `positions` [T], integers."""
        cos, sin = self.tables.index_select(0, positions).unbind(1)
        return cos, sin


class MergedAttention(nn.Module):
    """`SelfAttention` with one matrix for q, k and v; cos and sin are those of `full_tables`."""

    def __init__(self, separate: nn.Module, config: LanguageConfig):
        super().__init__()
        queries, keys = config.num_attention_heads, config.num_key_value_heads
        self.heads, self.head_dim = queries + 2 * keys, config.head_dim
        self.rotated_and_values = (queries + keys, keys)  # heads
        self.queries_and_keys = (queries, keys)
        self.qkv_proj = take_merged(separate, ("q_proj", "k_proj", "v_proj"))
        self.o_proj = separate.get_submodule("o_proj")
        self.has_qk_norm = config.family.has_qk_norm
        self.q_norm, self.k_norm = map(separate.get_submodule, ("q_norm", "k_norm"))
        query_width, key_width = queries * config.head_dim, keys * config.head_dim
        parts = {"q_proj": query_width, "k_proj": key_width, "v_proj": key_width}
        save_apart(self, "qkv_proj", parts)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, attention: Attention, layer_index: int
    ) -> Tensor:
        heads = self.qkv_proj(x).view(-1, self.heads, self.head_dim)  # [T, Hq + 2 Hkv, D]
        rotated, v = heads.split_with_sizes(self.rotated_and_values, dim=1)
        if self.has_qk_norm:
            q, k = rotated.split_with_sizes(self.queries_and_keys, dim=1)
            rotated = torch.cat((self.q_norm(q), self.k_norm(k)), dim=1)
        if runs_in_cpp(rotated) and cos.dtype == torch.float32:
            rotated = rotate_cpp(rotated, cos, sin, self.rotated_and_values[0])
        else:
            other_half = rotated.roll(self.head_dim // 2, dims=-1)
            rotated = torch.addcmul(rotated * cos, other_half, sin)  # [T, Hq + Hkv, D]
        q, k = rotated.split_with_sizes(self.queries_and_keys, dim=1)
        return self.o_proj(attention(layer_index, q, k, v).flatten(1))


class MergedMLP(nn.Module):
    """`GatedMLP` with one matrix for gate and up."""

    def __init__(self, separate: nn.Module, config: LanguageConfig):
        super().__init__()
        self.halves = (config.intermediate_size, config.intermediate_size)
        self.gate_up_proj = take_merged(separate, ("gate_proj", "up_proj"))
        self.down_proj = separate.get_submodule("down_proj")
        save_apart(self, "gate_up_proj", dict.fromkeys(("gate_proj", "up_proj"), self.halves[0]))

    def forward(self, x: Tensor) -> Tensor:
        gate_up = self.gate_up_proj(x)  # [T, 2 F]
        if runs_in_cpp(gate_up):
            return self.down_proj(swiglu_cpp(gate_up))
        gate, up = gate_up.split_with_sizes(self.halves, dim=-1)  # [T, F] each
        return self.down_proj(F.silu(gate).mul_(up))


def take_merged(parent: nn.Module, names: tuple[str, ...]) -> nn.Linear:
    """One linear layer that computes what these of `parent` do, one after another; they leave it.

    Raises ValueError for layers that are no plain linear ones.
    """
    layers = []
    for name in names:
        layer = getattr(parent, name, None)
        if type(layer) is not nn.Linear:
            raise ValueError(
                f"{name}: expected a plain linear layer to merge, got {type(layer).__name__}; "
                f"merge once, and first, then convert to float8 or quantise"
            )
        layers.append(layer)
    first = layers[0]
    width = sum(layer.out_features for layer in layers)
    merged = nn.Linear(first.in_features, width, bias=first.bias is not None, device="meta")
    for part, own in first.named_parameters():
        rows = torch.cat([layer.get_parameter(part) for layer in layers]).detach()
        setattr(merged, part, nn.Parameter(rows, requires_grad=own.requires_grad))
    for name in names:
        delattr(parent, name)
    return merged


def save_apart(parent: nn.Module, name: str, parts: dict[str, int]) -> None:
    """The state dict of `parent` has, for the merged layer `name`, the layers that it was made of:
    `parts` are their names and numbers of rows, in order."""

    def split(module: nn.Module, state: dict[str, Tensor], prefix: str, _) -> None:
        for kind, _ in module.get_submodule(name).named_parameters():  # weight, maybe bias
            rows = state.pop(f"{prefix}{name}.{kind}").split(list(parts.values()))
            state |= {f"{prefix}{part}.{kind}": own for part, own in zip(parts, rows, strict=True)}

    parent.register_state_dict_post_hook(split)


@torch.no_grad()
def merge_projections(model: MetaMorph) -> None:
    """Merges q, k and v, and gate and up, of every layer of the language model, in place.

    States are the same within rounding, under autocast too. One layer at a time is copied, and the
    separate weights are freed. `convert_to_float8` comes after this, and converts what is merged:
    a scale for each row is the same for merged rows. What is saved of the model has the names and
    tensors that it had before. It generates; it cannot be trained.

    Raises ValueError if layers were merged or converted before.
    """
    language = model.language
    for block in language.model.layers:
        block.self_attn = MergedAttention(block.get_submodule("self_attn"), language.config)
        block.mlp = MergedMLP(block.get_submodule("mlp"), language.config)
    for module in language.modules():
        if isinstance(module, RMSNorm):
            module.compute = lean_rms_norm(module.eps)
    model.projector.compute = model.vision_head.compute = lean_mlp_gelu
    language.tables = full_tables


@torch.no_grad()
def cast_weights(model: MetaMorph, dtype: torch.dtype) -> None:
    """Holds in `dtype` what autocast of that dtype rounds to it in every step, in place.

    Those are weights and biases of the linear layers of language model, projector and vision head;
    token table, norms and encoder stay. Under that autocast the states are the same, bit for bit,
    of fp32 weights half the memory is read, and the model runs nowhere else. Not for precision fp8,
    which rounds the weights themselves. Before or after `quantize_weights`.
    """
    for part in (model.language, model.projector, model.vision_head):
        for module in part.modules():
            if type(module) in (nn.Linear, ColumnLinear):  # not one whose weights are in 8 bits
                module.to(dtype)


@torch.no_grad()
def store_by_columns(model: MetaMorph) -> None:
    """Lays out the fp32 weights of linear layers on a CPU column after column, in place.

    A step multiplies a few rows by weights that may have left the cache since the last one. In this
    order a product of few rows reads them as one stream, and several rows need no copy of them
    (`lean_linear`). What is saved is the same. One layer at a time is copied. This comes last: what
    merges, converts or quantises layers takes plain ones.
    """
    model.language.product = lean_linear
    for part in (model.language, model.projector, model.vision_head):
        for module in part.modules():
            if type(module) is nn.Linear and module.weight.is_cpu:
                if module.weight.dtype == torch.float32:
                    columns = module.weight.t().contiguous().t()
                    module.weight = nn.Parameter(columns, module.weight.requires_grad)
                    module.__class__ = ColumnLinear
