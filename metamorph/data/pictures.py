"""The pictures of a source alone, as the decoder's training takes them."""

from PIL import Image

from metamorph.data.images import opened
from metamorph.data.skips import Skips
from metamorph.data.sources import Source
from metamorph.errors import SampleError, UserError


class PictureStream:
    """Endless pictures in the source's order. Unusable samples are counted in ``skips``."""

    def __init__(self, source: Source):
        self.source, self.next_index = source, 0
        self.skips = Skips()
        self.last_samples: list[str] = []  # ids behind the last ``take``

    def take(self, count: int) -> list[Image.Image]:
        """The next ``count`` pictures; what is left of the last sample is dropped."""
        pictures: list[Image.Image] = []
        self.last_samples = []
        tried = 0
        while len(pictures) < count:
            if not pictures and tried >= 2 * len(self.source):  # as in RowStream
                raise UserError(f"data: no picture in two epochs; skipped: {self.skips.examples}")
            self.skips.tried += 1
            try:
                sample = self.source.sample(self.next_index)
                pictures += [opened(image) for image in sample.images]
                self.last_samples.append(sample.id)
            except SampleError as error:
                self.skips.add(error)
            self.next_index += 1
            tried += 1
        return pictures[:count]

    def state_dict(self) -> dict:
        return {"next_index": self.next_index, **self.skips.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.next_index = state["next_index"]
        self.skips.load_state_dict(state)
