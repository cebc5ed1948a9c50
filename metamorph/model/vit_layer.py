"""A layer of a vision transformer of transformers, computed where it is read."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from metamorph.errors import UserError

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class LayerParts:
    """What transformers calls the parts of a layer that `ViTEncoder` computes by itself.

    Attributes:
        output: the projection in `attention` after it, beside those of `PROJECTIONS`.
        dropout: the rate of the attention.
        is_scaled: what attention and MLP add goes through layer_scale1 and 2, and drop_path.
    """

    norm1: str
    attention: str
    output: str
    dropout: str
    norm2: str
    is_scaled: bool = False

    def check(self, layer: Any, kind: str) -> None:
        """Raise UserError unless a layer is made of these parts, and of no others."""
        attention = getattr(layer, self.attention, nn.Module())
        expected = {self.norm1, self.attention, self.norm2, "mlp"}
        if self.is_scaled:
            expected |= {"layer_scale1", "layer_scale2", "drop_path"}
        projections = {*PROJECTIONS, self.output}
        parts, attention_parts = (
            {
                name
                for name, _ in (*module.named_children(), *module.named_parameters(recurse=False))
            }
            for module in (layer, attention)
        )
        if parts != expected or attention_parts != projections:
            raise UserError(
                f"transformers {transformers.__version__}: expected a {kind} layer of "
                f"{sorted(expected)} and attention of {sorted(projections)}, "
                f"got {sorted(parts)} and {sorted(attention_parts)}"
            )

    def compute(
        self, layer: Any, hidden: Tensor, read: Tensor, turns: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """A layer over hidden [B, tokens, C], computed for the tokens `read`; others stay.

        Args:
            turns: cos and sin [patches, head dim] by which queries and keys of patches, the last of
                the tokens, are rotated.
        """
        attention = getattr(layer, self.attention)
        normed = getattr(layer, self.norm1)(hidden)  # whole: every token is a key and a value
        queries, keys, values = (  # each [B, heads, tokens, head dim]
            getattr(attention, name)(tokens).unflatten(2, (-1, attention.head_dim)).transpose(1, 2)
            for name, tokens in zip(
                PROJECTIONS, (normed.index_select(1, read), normed, normed), strict=True
            )
        )
        if turns is not None:
            before = hidden.shape[1] - len(turns[0])  # tokens that have no place and do not turn
            cos, sin = (
                F.pad(t, (0, 0, before, 0), value=v) for t, v in zip(turns, (1, 0), strict=True)
            )
            queries, keys = _rotated(queries, cos[read], sin[read]), _rotated(keys, cos, sin)
        rate = getattr(attention, self.dropout) if attention.training else 0.0
        attended = F.scaled_dot_product_attention(queries, keys, values, dropout_p=rate)
        attended = getattr(attention, self.output)(attended.transpose(1, 2).flatten(2))
        states = hidden.index_select(1, read)  # [B, read, C]
        states = states + self._scaled(layer, 1, attended)
        states = states + self._scaled(layer, 2, layer.mlp(getattr(layer, self.norm2)(states)))
        return hidden.index_copy(1, read, states)

    def _scaled(self, layer: Any, number: int, added: Tensor) -> Tensor:
        if not self.is_scaled:
            return added
        return layer.drop_path(getattr(layer, f"layer_scale{number}")(added))


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys [B, heads, tokens, head dim], each pair of its halves turned."""
    left, right = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-right, left), dim=-1) * sin
