"""What a one-pass decoder learns from: pixels, the features of what it draws, and a critic."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def feature_error(found: Tensor, wanted: Tensor) -> Tensor:
    """1 - cosine of unit features [B, tokens, C], mean over all of them."""
    return 1 - (found.float() * wanted.float()).sum(-1).mean()


class Critic(nn.Module):
    """Tells features of pictures from those of drawings: a head of two layers on the frozen
    encoder, whose judgement of each is high for what it takes for a picture."""

    def __init__(self, feature_width: int):
        super().__init__()
        self.scale = feature_width**0.5  # components of a unit vector, brought to variance 1
        self.layers = nn.Sequential(
            nn.Linear(feature_width, feature_width), nn.LeakyReLU(0.2), nn.Linear(feature_width, 1)
        )

    def judge(self, features: Tensor) -> Tensor:
        """[..., C] to [...]."""
        return self.layers(features * self.scale).squeeze(-1).float()

    def forward(self, real: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Its hinge error, from which it learns alone; and what it reproaches the drawings with,
        minus its mean judgement of them, from which they learn alone. Both [B, tokens, C]."""
        fixed = drawn.detach()
        taken, refused, wanted = self.judge(torch.stack([real.detach(), fixed, drawn]))
        error = (F.relu(1 - taken).mean() + F.relu(1 + refused).mean()) / 2
        # The first two are equal: to the critic's own weights their gradients are opposite.
        return error, refused.mean() - wanted.mean() - refused.detach().mean()
