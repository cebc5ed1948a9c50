"""Visual features to the UNet's conditioning: `Linear-LN-ReLU-Linear-LN` (paper appendix A.2)."""

import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class FeatureAdapter(ModelMixin, ConfigMixin):
    """[B, tokens, C] unit features to [B, length, E] conditions for cross-attention.

    `condition_length` pads with zero rows, as Stable Diffusion's 77 text positions are filled
    from 64 visual tokens; 0 adds none.
    """

    @register_to_config
    def __init__(
        self,
        feature_width: int,
        hidden_width: int,
        condition_width: int,
        condition_length: int = 0,
    ):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(feature_width, hidden_width),
            nn.LayerNorm(hidden_width),
            nn.ReLU(),
            nn.Linear(hidden_width, condition_width),
            nn.LayerNorm(condition_width),
        )

    def forward(self, features: Tensor) -> Tensor:
        conditions = self.layers(features)
        missing = self.config.condition_length - conditions.shape[1]
        return F.pad(conditions, (0, 0, 0, missing)) if missing > 0 else conditions
