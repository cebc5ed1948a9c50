"""Counting the samples that could not be used, whatever was wrong with them."""

import os
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import contextmanager

from metamorph.data.images import shorten
from metamorph.errors import Halted, SampleError, Stopped, UserError

FEWEST = 100  # samples before a share of them says anything
# What a wrong value in a file brings about. An error of another type is counted by its name.
OF_VALUES = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
# What no file can bring about, only a mistake in our code. It must not cost a run of days, but
# where the code is tested it must not hide as one more skipped sample either.
OF_OUR_CODE = (NameError, ImportError, AssertionError, NotImplementedError)


@contextmanager
def skippable(sample: str = "") -> Generator[None]:
    """While one sample is prepared, an error of any type is a `SampleError`: no file can end a run.

    `sample`: what its message begins with. A `SampleError`, `UserError` or `Halted` stays as it is.
    """
    try:
        yield
    except (SampleError, UserError, Halted, Stopped):
        raise
    except Exception as error:
        if isinstance(error, OF_OUR_CODE) and "PYTEST_CURRENT_TEST" in os.environ:
            raise
        module, kind = type(error).__module__, type(error).__name__
        if module != "builtins":
            kind = f"{module}.{kind}"  # two libraries call theirs `error`
        cause = "malformed record" if isinstance(error, OF_VALUES) else f"unexpected {kind}"
        # A plain ValueError is a sentence of our own; of any other, the type is half of the news.
        problem = shorten(str(error))
        if type(error) is not ValueError:
            problem = f"{kind}: {problem}"
        raise SampleError(cause, f"{sample}: {problem}" if sample else problem) from error


@contextmanager
def located(sample: str) -> Generator[None]:
    """As `skippable`; the message of a `SampleError` begins with `sample`, too, unless it already
    names it."""
    try:
        with skippable():
            yield
    except SampleError as error:
        if sample in str(error):
            raise
        raise SampleError(error.cause, f"{sample}: {error}") from error


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
