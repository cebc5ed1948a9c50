"""A lean Llama over packed rows, with Hugging Face names for parameters and settings.

Its relatives are the same decoder with a bias or a norm more: see `language_families`.
There is no batch dimension: documents lie end to end in one row of T tokens, and the caller's
attention function decides who sees whom. Norms, rotation and activation are functions that modules
hold, so that `fused_parts` can put those of another library in their place.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metamorph.model.language_config import LanguageConfig
from metamorph.model.unfilled import unfilled
from metamorph.model.weights import load_module, read_tensors, write_json, write_tensors

# attention(layer_index, q [T, Hq, D], k [T, Hkv, D], v [T, Hkv, D]) -> [T, Hq, D]
Attention = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def inverse_frequencies(config: LanguageConfig, device: torch.device) -> Tensor:
    """Rotary frequencies [D / 2] in fp32, with the Llama-3 scaling if the config asks for it.

    Computed, not stored: a buffer would follow the module to bf16 and lose the low frequencies.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device)
    frequencies = 1.0 / config.rope_theta ** (exponents / config.head_dim)
    if config.rope_scaling is None:
        return frequencies
    scaling = config.rope_scaling
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling["factor"])


def rotary_tables(
    positions: Tensor, config: LanguageConfig, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin [T, 1, D / 2] of `positions` [T]; angles in fp32, results in `dtype`."""
    frequencies = inverse_frequencies(config, positions.device)
    angles = positions.to(torch.float32)[:, None, None] * frequencies
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Each row of x [T, H] over the root of its mean square and eps, times weight [H]."""
    return F.rms_norm(x, weight.shape, weight, eps)


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate q [T, Hq, D] and k [T, Hkv, D] by the `rotary_tables` cos and sin."""
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [T, heads, D], pairing element i with element i + D / 2."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, both [T, F]."""
    return F.silu(gate) * up


def project(x: Tensor, *layers: nn.Module) -> Sequence[Tensor]:
    """What each of the layers makes of x [T, H]: [T, out], with an `out` of its own."""
    return [layer(x) for layer in layers]


class RMSNorm(nn.RMSNorm):
    """The norm of a row [T, H], computed by `compute`."""

    compute = staticmethod(rms_norm)
    eps: float  # pyrefly: ignore[bad-override-mutable-attribute]  always given

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x, self.weight, self.eps)


class HeadNorm(RMSNorm):
    """The norm of each head of a row [T, heads, D], returned in its dtype. It is computed in that
    of the weight: under autocast products return a narrower one."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1).to(self.weight.dtype)  # [T heads, D]
        return super().forward(rows).to(x.dtype).view(x.shape)


class SelfAttention(nn.Module):
    """Projections (q, k and v by `project`), the norm of heads in some models, and rotary positions
    (by `rotate`) around the caller's attention function."""

    project = staticmethod(project)
    rotate = staticmethod(rotate)

    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.head_dim = config.head_dim
        query_width = config.num_attention_heads * config.head_dim
        key_width = config.num_key_value_heads * config.head_dim
        bias = config.family.has_qkv_bias
        self.q_proj = nn.Linear(config.hidden_size, query_width, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, key_width, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, key_width, bias=bias)
        self.o_proj = nn.Linear(query_width, config.hidden_size, bias=False)
        norm = HeadNorm if config.family.has_qk_norm else nn.Identity
        self.q_norm = norm(config.head_dim, eps=config.rms_norm_eps)
        self.k_norm = norm(config.head_dim, eps=config.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, attention: Attention, layer_index: int
    ) -> Tensor:
        q, k, v = (  # [T, Hq, D], [T, Hkv, D], [T, Hkv, D]
            heads.unflatten(-1, (-1, self.head_dim))
            for heads in self.project(x, self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = self.rotate(self.q_norm(q), self.k_norm(k), cos, sin)
        return self.o_proj(attention(layer_index, q, k, v).flatten(1))


class GatedMLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)), both of x by `project`, the middle by `activate`."""

    project = staticmethod(project)
    activate = staticmethod(swiglu)

    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.project(x, self.gate_proj, self.up_proj)
        return self.down_proj(self.activate(gate, up))


def share_inputs(model: nn.Module, function: Callable[..., Sequence[Tensor]]) -> None:
    """Lets `function`, with the signature of `project`, take its place in all layers."""
    for module in model.modules():
        if isinstance(module, SelfAttention | GatedMLP):
            module.project = function


class Block(nn.Module):
    """One block: the unit that training compiles, checkpoints and shards."""

    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = GatedMLP(config)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        attention: Attention,
        layer_index: int,
        kept: Tensor | None = None,
    ) -> Tensor:
        """States [T, H]; or [N, H] of the tokens `kept` int64 [N], if `attention` returns theirs
        alone."""
        attended = self.self_attn(self.input_layernorm(x), cos, sin, attention, layer_index)
        x = (x if kept is None else x[kept]) + attended
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaModel(nn.Module):
    """Token table, blocks and final norm: the part Hugging Face calls `model`."""

    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class Llama(nn.Module):
    """A Llama, Mistral, Qwen2 or Qwen3 with the parameter names of transformers.

    With `tie_word_embeddings` there is no `lm_head`, as in a tied checkpoint: one parameter can
    then neither drift apart nor be counted twice. Use `output_weight` for either kind.

    `tables` computes cos and sin in the form that the layers take, `product` that of the head.
    """

    tables = staticmethod(rotary_tables)
    product: Callable[..., Tensor] = staticmethod(F.linear)

    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.config = config
        self.model = LlamaModel(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @property
    def output_weight(self) -> Tensor:
        """The matrix [V, H] that turns states into logits."""
        tied = self.config.tie_word_embeddings
        return self.model.embed_tokens.weight if tied else self.lm_head.weight

    def forward(self, embeddings: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """States after the final norm.

        Args:
            embeddings: [T, H] input vectors.
            positions: [T] integer position of each token within its document.
            attention: called once a layer as `attention(layer_index, q, k, v)` with rotated
                q [T, Hq, D], k [T, Hkv, D] and v [T, Hkv, D]; returns [T, Hq, D].

        Returns:
            [T, H] in the dtype of `embeddings`.
        """
        cos, sin = self.tables(positions, self.config, embeddings.dtype)
        return self.run(embeddings, cos, sin, attention)

    def run(
        self,
        embeddings: Tensor,
        cos: Tensor,
        sin: Tensor,
        attention: Attention,
        kept: Tensor | None = None,
    ) -> Tensor:
        """What `forward` computes, with the cos and sin of all positions from `tables`.

        Of the tokens `kept` int64 [N] alone, if they are given: then `attention` must return
        [N, Hq, D] in the last layer, where nobody needs more of the others than keys and values.
        """
        states = embeddings
        *layers, last = self.model.layers
        for layer_index, layer in enumerate(layers):
            states = layer(states, cos, sin, attention, layer_index)
        return self.model.norm(last(states, cos, sin, attention, len(layers), kept))

    def head(self, states: Tensor) -> Tensor:
        """Logits [N, V] of states [N, H]."""
        return self.product(states, self.output_weight)

    @torch.no_grad()
    def add_tokens(self, token_ids: list[int]) -> None:
        """Give new tokens the mean of all other rows, in the input and the output matrix.

        Both matrices grow if an id lies beyond them; a row already there is overwritten.
        Mean initialisation follows the released training (MetaMorph, arXiv 2412.14164).
        """
        if not token_ids:
            return
        old_size = self.config.vocab_size
        new_size = max(old_size, max(token_ids) + 1)
        others = torch.ones(old_size, dtype=torch.bool)
        others[[token_id for token_id in token_ids if token_id < old_size]] = False
        tables: list[nn.Embedding | nn.Linear] = [self.model.embed_tokens]
        if not self.config.tie_word_embeddings:
            tables.append(self.lm_head)
        for table in tables:
            old = table.weight
            mean = old[others.to(old.device)].float().mean(dim=0).to(old.dtype)  # [H]
            new = torch.cat((old, mean.expand(new_size - old_size, -1)))
            new[token_ids] = mean
            table.weight = nn.Parameter(new, requires_grad=old.requires_grad)
        self.model.embed_tokens.num_embeddings = new_size
        if not self.config.tie_word_embeddings:
            self.lm_head.out_features = new_size
        self.config.vocab_size = new_size

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Llama":
        """Load a Hugging Face folder (config.json and safetensors), in the file's dtype.

        Raises UserError if the architecture is another one or a tensor does not fit.
        """
        folder = Path(folder)
        config = LanguageConfig.read(folder)
        with unfilled():
            model = cls(config)
        tensors = read_tensors(folder)
        # Old exporters stored the rotary table, and some the tied matrix twice.
        redundant = {name for name in tensors if name.endswith("rotary_emb.inv_freq")}
        if config.tie_word_embeddings:
            redundant.add("lm_head.weight")
        kept = {name: tensor for name, tensor in tensors.items() if name not in redundant}
        load_module(model, kept, folder)
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and safetensors that transformers' AutoModelForCausalLM loads."""
        write_tensors(Path(folder), self.state_dict())
        write_json(Path(folder) / "config.json", self.config.to_dict())
