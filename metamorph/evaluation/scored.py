"""What became of the samples of a suite, as values that pair with those of another model."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from PIL import Image

from metamorph.errors import UserError
from metamorph.evaluation.intervals import estimate


@dataclass(frozen=True)
class Scored:
    """One sample. `scores` by the name of a measure: true or false for right or wrong, else a
    number. A measure may be of some samples of a suite alone.

    `real` and `drawn` are what it asks to draw and what was drawn, where that can be shown;
    `weight` is what it counts in a mean. Samples of one `cluster`, such as a combination of shape,
    colour and place, are not independent; without one a sample is its own.
    """

    id: str
    request: str
    scores: Mapping[str, bool | float]
    expected: str = ""
    answer: str = ""
    weight: float = 1.0
    cluster: str = ""
    real: Image.Image | None = field(default=None, repr=False)
    drawn: Image.Image | None = field(default=None, repr=False)

    def record(self) -> dict:
        """Without the pictures, and without what is empty, for JSON."""
        texts = {"expected": self.expected, "answer": self.answer, "cluster": self.cluster}
        said = {name: text for name, text in texts.items() if text}
        weight = {} if self.weight == 1 else {"weight": self.weight}
        return (
            {"id": self.id, "request": self.request} | said | weight | {"scores": dict(self.scores)}
        )


def means(samples: Iterable[Scored], seed: int) -> dict[str, dict]:
    """Of each measure the mean over the samples that have it, with its interval, for JSON: what
    stands first in any sample comes first. Raises `UserError` for a score that is not finite, which
    a sound model never has."""
    values: dict[str, list[float]] = {}
    weights: dict[str, list[float]] = {}
    clusters: dict[str, list[str]] = {}
    places: dict[str, int] = {}
    for sample in samples:
        for place, (name, value) in enumerate(sample.scores.items()):
            places.setdefault(name, place)
            if not math.isfinite(value):
                raise UserError(
                    f"sample {sample.id}: {name} is {value}: the model's weights are damaged, or "
                    f"its precision is too low for them"
                )
            values.setdefault(name, []).append(float(value))
            weights.setdefault(name, []).append(sample.weight)
            clusters.setdefault(name, []).append(sample.cluster or sample.id)
    found = {
        name: estimate(values[name], seed, weights[name], clusters[name])
        for name in sorted(values, key=places.__getitem__)
    }
    return {name: asdict(mean) for name, mean in found.items() if mean is not None}
