"""Counting the samples that could not be used."""

from collections import Counter
from collections.abc import Iterable

from metamorph.errors import SampleError, UserError

FEWEST = 100  # samples before a share of them says anything


class Skips:
    """How many samples were tried, and how many skipped for each cause, with a first example."""

    def __init__(self):
        self.tried = 0
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}  # cause: message of its first sample

    def add(self, error: SampleError) -> None:
        self.counts[error.cause] += 1
        self.examples.setdefault(error.cause, str(error))

    def by_cause(self) -> dict[str, tuple[int, str]]:
        """Count and first message of each cause."""
        return {cause: (count, self.examples[cause]) for cause, count in self.counts.items()}

    def state_dict(self) -> dict:
        counts, examples = dict(self.counts), dict(self.examples)
        return {"tried": self.tried, "skipped": counts, "examples": examples}

    @classmethod
    def of(cls, state: dict) -> "Skips":
        """What `state_dict` gave."""
        skips = cls()
        skips.load_state_dict(state)
        return skips

    def load_state_dict(self, state: dict) -> None:
        self.tried = state["tried"]
        self.counts = Counter(state["skipped"])
        self.examples = dict(state["examples"])


def sum_skips(parts: Iterable[Skips]) -> Skips:
    """All of them together; the example of a cause is the first one's."""
    total = Skips()
    for part in parts:
        total.tried += part.tried
        total.counts.update(part.counts)
        total.examples = part.examples | total.examples
    return total


def check_skip_limit(parts: Iterable[Skips], limit: float) -> None:
    """Raises `UserError` if of all samples, at least 100, more than `limit` were unusable."""
    total = sum_skips(parts)
    skipped = total.counts.total()
    if total.tried >= FEWEST and skipped > limit * total.tried:
        causes = "; ".join(
            f"{count} {cause} (first: {total.examples[cause]})"
            for cause, count in total.counts.most_common()
        )
        raise UserError(
            f"data.skip_limit: {skipped} of {total.tried} samples are unusable, "
            f"more than {limit:.0%}: {causes}"
        )
