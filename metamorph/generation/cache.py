"""A static cache of keys and values: allocated once, written in place."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metamorph.model.language_config import LanguageConfig
from metamorph_kernels import runs_in_cpp, store_cpp


@dataclass(frozen=True)
class KeyValueCache:
    """Keys and values of B sequences with room for S tokens each, and a spare place behind it.

    Attributes:
        layers: of each layer its keys and values, [B, S + 1, Hkv, D]; in memory the places of a
            head are neighbours.
        owners: [B] int64, 0 to B - 1.
        lengths: [B] int64, tokens stored in each sequence. The next one goes to that place: of a
            full sequence to the spare one, where it hurts nobody.
    """

    layers: list[tuple[Tensor, Tensor]]
    owners: Tensor
    lengths: Tensor

    @classmethod
    def empty(
        cls,
        config: LanguageConfig,
        batch: int,
        capacity: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> "KeyValueCache":
        heads, head_dim = config.num_key_value_heads, config.head_dim
        shape = (config.num_hidden_layers, batch, heads, capacity + 1, head_dim)
        keys = torch.zeros(shape, device=device, dtype=dtype).transpose(2, 3)
        values = torch.zeros(shape, device=device, dtype=dtype).transpose(2, 3)
        return cls(
            list(zip(keys, values, strict=True)),
            torch.arange(batch, device=device),
            torch.zeros(batch, device=device, dtype=torch.int64),
        )

    def narrow(self, rows: int) -> "KeyValueCache":
        """That of the first `rows` sequences: views."""
        layers = [(keys[:rows], values[:rows]) for keys, values in self.layers]
        return KeyValueCache(layers, self.owners[:rows], self.lengths[:rows])

    def grow(self, alive: Tensor) -> tuple[Tensor, Tensor]:
        """A token more for each sequence whose `alive`, int64 [B], is 1 and not 0. Returns, int64
        [B] each, where the next tokens go, and how many keys they see with their own: none in the
        sequences that stay as they are."""
        places = self.lengths.clone()
        self.lengths.add_(alive)
        return places, self.lengths * alive

    def write(
        self, layer_index: int, sequences: Tensor, places: Tensor, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Store k and v [N, Hkv, D] of one layer at (sequences [N], places [N]), int64. Returns all
        keys and values of the layer."""
        keys, values = self.layers[layer_index]
        if runs_in_cpp(keys) and k.dtype == keys.dtype:
            store_cpp(keys, values, sequences, places, k, v)
        else:
            keys.index_put_((sequences, places), k)
            values.index_put_((sequences, places), v)
        return keys, values
