"""The pictures of a source alone, as the decoder's training takes them."""

from collections import Counter

from PIL import Image

from metamorph.data.conversation import SampleError
from metamorph.data.sources import Source
from metamorph.errors import UserError


class PictureStream:
    """Endless pictures in the source's order. Unusable samples are counted in ``skipped``."""

    def __init__(self, source: Source):
        self.source = source
        self.next_index = 0
        self.skipped: Counter[str] = Counter()
        self.examples: dict[str, str] = {}  # cause: message of its first sample
        self.last_samples: list[str] = []  # ids behind the last ``take``

    def take(self, count: int) -> list[Image.Image]:
        """The next ``count`` pictures; what is left of the last sample is dropped."""
        pictures: list[Image.Image] = []
        self.last_samples = []
        tried = 0
        while len(pictures) < count:
            if not pictures and tried >= 2 * len(self.source):  # as in RowStream
                raise UserError(f"data: no picture in two epochs; skipped: {self.examples}")
            try:
                sample = self.source.sample(self.next_index)
                pictures += sample.images
                self.last_samples.append(sample.id)
            except SampleError as error:
                self.skipped[error.cause] += 1
                self.examples.setdefault(error.cause, str(error))
            self.next_index += 1
            tried += 1
        return pictures[:count]

    def state_dict(self) -> dict:
        return {
            "next_index": self.next_index,
            "skipped": dict(self.skipped),
            "examples": self.examples,
        }

    def load_state_dict(self, state: dict) -> None:
        self.next_index = state["next_index"]
        self.skipped = Counter(state["skipped"])
        self.examples = dict(state["examples"])
