"""A static cache of keys and values: allocated once, written in place."""

import torch
from torch import Tensor

from metamorph.model.language_config import LanguageConfig


class KeyValueCache:
    """Keys and values of B sequences with room for S tokens each.

    Attributes:
        keys, values: [layers, B, S, Hkv, D].
        lengths: [B] int32, tokens stored in each sequence; `advance` moves all by one.
    """

    def __init__(
        self,
        config: LanguageConfig,
        batch: int,
        capacity: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ):
        heads, head_dim = config.num_key_value_heads, config.head_dim
        shape = (config.num_hidden_layers, batch, capacity, heads, head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(batch, device=device, dtype=torch.int32)

    def write(
        self, layer_index: int, sequences: Tensor, slots: Tensor, k: Tensor, v: Tensor
    ) -> None:
        """Store k and v [N, Hkv, D] of one layer at (sequences [N], slots [N]), int64."""
        self.keys[layer_index].index_put_((sequences, slots), k)
        self.values[layer_index].index_put_((sequences, slots), v)

    def advance(self) -> None:
        self.lengths += 1
