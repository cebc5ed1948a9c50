"""The endless source of generated samples."""

import math

from metamorph.data.conversation import Sample
from metamorph.data.toy.tasks import ALL_KINDS, DEFAULT_WEIGHTS, make_task
from metamorph.data.toy.wording import PLAIN, Wording
from metamorph.errors import UserError


class ToyScenes:
    """Endless generated samples of the training split; see `tasks`."""

    EPOCH = 1_000_000  # every index is another sample; an epoch is only a unit of counting

    def __init__(
        self, seed: int, weights: dict[str, float], samples: int, wording: Wording = PLAIN
    ):
        unknown = sorted(set(weights) - set(ALL_KINDS))
        if unknown:
            raise UserError(f"data.kinds: unknown {unknown}, expected some of {sorted(ALL_KINDS)}")
        if weights and not 0 < sum(weights.values()) < math.inf:
            raise UserError(f"data.kinds: {weights} holds no kind with a weight above 0")
        self.seed = seed
        self.weights = weights or DEFAULT_WEIGHTS
        self.samples = samples or self.EPOCH
        self.wording = wording

    def __len__(self) -> int:
        return self.samples

    def sample(self, index: int) -> Sample:
        place = index % self.samples
        return make_task(self.seed, place, "train", self.weights, self.wording).sample
