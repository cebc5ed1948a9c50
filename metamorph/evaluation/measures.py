"""What is measured of drawings beside the pictures that they are of."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

from PIL import Image
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from metamorph.data.toy.scenes import IMAGE_SIZE
from metamorph.evaluation.checker import ALL_RIGHT, ATTRIBUTES, score
from metamorph.evaluation.held_out_pictures import HeldOutPicture
from metamorph.evaluation.intervals import estimate
from metamorph.evaluation.learned_scores import ClipScore, FrechetDistance
from metamorph.evaluation.similarity import (
    SMALLEST,
    ShuffledPairs,
    peak_signal_to_noise,
    pixels_of,
    structural_similarity,
    token_cosines,
)
from metamorph.pixels import Square


@dataclass
class Values:
    """One a picture, with the cluster of each."""

    values: list[float] = field(default_factory=list)
    clusters: list[str] = field(default_factory=list)

    def add(self, value: float, cluster: str) -> None:
        self.values.append(value)
        self.clusters.append(cluster)


class Measures:
    """Values of one kind of drawings, one a picture, and their means.

    `shown` has the drawings of the pictures whose number is below `most_shown`.
    """

    def __init__(
        self,
        *,
        clip: ClipScore | None = None,
        frechet: FrechetInceptionDistance | None = None,
        most_shown: int = 0,
    ):
        self.clip, self.most_shown = clip, most_shown
        self.frechet = None if frechet is None else FrechetDistance(frechet)
        self.values: dict[str, Values] = defaultdict(Values)
        self.right: dict[str, Values] = defaultdict(Values)  # 1 or 0 a picture
        self.shuffled = ShuffledPairs()
        self.identical = self.undrawn = 0
        self.seconds: list[float] = []  # a picture, in each batch
        self.shown: dict[int, Image.Image] = {}

    def add(
        self,
        drawn: Sequence[Image.Image],
        real: Sequence[HeldOutPicture],
        originals: Sequence[Image.Image],
        drawn_features: Tensor,
        real_features: Tensor,
    ) -> None:
        """The next drawings. `originals` are what they are of, in their size; features are
        [B, tokens, C], those of drawings as the encoder sees them."""
        self.keep("cosine", token_cosines(drawn_features, real_features), real)
        self.shuffled.add(drawn_features, real_features)
        pixels, expected = pixels_of([*drawn]), pixels_of([*originals])
        decibels = peak_signal_to_noise(pixels, expected)
        self.keep("psnr", decibels, real)
        self.identical += sum(map(math.isinf, decibels))
        if min(pixels.shape[-2:]) >= SMALLEST:
            self.keep("ssim", structural_similarity(pixels, expected), real)
        if self.frechet is not None:
            self.frechet.add(pixels, expected)
        captions = [one.caption for one in real]
        if self.clip is not None and all(captions):
            self.keep("clip_score", self.clip([*drawn], captions), real)
        for picture, one in zip(drawn, real, strict=True):
            if one.scene is not None:
                read = score(Square(IMAGE_SIZE)(picture), one.scene)
                self._judge({name: read[name] for name in ATTRIBUTES}, one)
            if one.number < self.most_shown:
                self.shown[one.number] = picture

    def add_undrawn(self, real: HeldOutPicture) -> None:
        """A picture of which nothing was drawn: no attribute of it is right."""
        self.undrawn += 1
        if real.scene is not None:
            self._judge(dict.fromkeys(ATTRIBUTES, False), real)

    def keep(self, name: str, values: Sequence[float], real: Sequence[HeldOutPicture]) -> None:
        """A value for each picture of `real`; what is not finite is left out."""
        for value, one in zip(values, real, strict=True):
            if math.isfinite(value):
                self.values[name].add(value, one.cluster)

    def _judge(self, right: dict[str, bool], real: HeldOutPicture) -> None:
        for name, is_right in (right | {ALL_RIGHT: all(right.values())}).items():
            self.right[name].add(float(is_right), real.cluster)

    @property
    def count(self) -> int:
        """Drawings so far."""
        return len(self.values["cosine"].values)

    def summary(self, seed: int) -> dict:
        """Each mean with its interval, as plain values for JSON; null where it was not measured."""

        def mean(of: Values) -> dict | None:
            found = estimate(of.values, seed, clusters=of.clusters)
            return None if found is None else asdict(found)

        # The first drawing beside the last picture stands last.
        own = self.values["cosine"].clusters
        shuffled = Values(self.shuffled.cosines(), [*own[1:], *own[:1]])

        return {
            "pictures": self.count,
            "undrawn": self.undrawn,
            "cosine": mean(self.values["cosine"]),
            "shuffled_cosine": mean(shuffled),
            "cosine_to_given": mean(self.values["cosine_to_given"]),
            "psnr": mean(self.values["psnr"]),
            "identical": self.identical,
            "ssim": mean(self.values["ssim"]),
            "fid": None if self.frechet is None else self.frechet.value(),
            "clip_score": mean(self.values["clip_score"]),
            "attributes": {name: mean(values) for name, values in self.right.items()},
            "seconds_per_picture": median(self.seconds) if self.seconds else None,
        }
