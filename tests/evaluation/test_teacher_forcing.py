"""What a baseline is made of."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F

from metamorph.evaluation.teacher_forcing import PICTURES, mean_token


class Counted:
    """An encoder whose pictures are features already; it keeps how many come at once."""

    def __init__(self):
        self.at_once = []

    def preprocess(self, pictures: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(pictures)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.at_once.append(len(pixels))
        return pixels


def test_the_mean_token_is_of_all_pictures_and_takes_some_at_a_time():
    features = torch.randn(2 * PICTURES + 3, 4, 6)
    encoder = Counted()
    chat = SimpleNamespace(model=SimpleNamespace(encoder=encoder), device="cpu")
    found = mean_token(chat, [*features])
    torch.testing.assert_close(found, F.normalize(features.mean(0), dim=-1))
    assert encoder.at_once == [PICTURES, PICTURES, 3]
