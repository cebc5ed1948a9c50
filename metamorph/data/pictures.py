"""The pictures of a source alone, as the decoder's training takes them."""

from PIL import Image

from metamorph.data.images import opened
from metamorph.data.lanes import OwnLanes
from metamorph.data.packing import MOST_IN_A_ROW
from metamorph.data.skips import Skips, located, skippable
from metamorph.data.sources import Source
from metamorph.errors import SampleError, UserError


class PictureStream:
    """Endless pictures of one lane: of the samples at l, l + n, l + 2n, ... for lane l of n.

    Unusable samples are counted in `skips`.
    """

    def __init__(self, source: Source, lane: int = 0, lanes: int = 1):
        self.source, self.lanes = source, lanes
        self.index, self.place = lane, 0  # of the next picture: its sample, and which of it
        self.skips = Skips()
        self.last_sample = ""  # the id behind the last picture

    @property
    def used(self) -> int:
        """Samples that were begun or skipped."""
        return self.skips.tried

    def __next__(self) -> Image.Image:
        tries = min(2 * len(self.source), MOST_IN_A_ROW)  # as in RowStream
        for _ in range(tries):
            self.skips.tried += self.place == 0
            try:
                with skippable(f"sample {self.index}"):
                    sample = self.source.sample(self.index)
                if self.place < len(sample.images):
                    with located(sample.where or f"sample {sample.id}"):
                        picture = opened(sample.images[self.place])
                    self.place += 1
                    self.last_sample = sample.id
                    return picture
            except SampleError as error:
                self.skips.add(error)
            self.index, self.place = self.index + self.lanes, 0
        raise UserError(
            f"data: no picture in {tries} samples in a row; skipped: {self.skips.examples}"
        )

    def state_dict(self) -> dict:
        return {"index": self.index, "place": self.place, **self.skips.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.index, self.place = state["index"], state["place"]
        self.skips.load_state_dict(state)


class PictureLanes(OwnLanes[PictureStream]):
    """The lanes of one process: each gives one picture of every batch, whoever computes it.

    `batch_size`: pictures of a step over all processes, which is the number of lanes, and which
    `world_size` must divide.
    """

    def __init__(self, source: Source, batch_size: int, rank: int = 0, world_size: int = 1):
        self.own = slice(rank, batch_size, world_size)  # of what is drawn for a whole batch
        lanes = range(batch_size)[self.own]
        streams = {lane: PictureStream(source, lane, batch_size) for lane in lanes}
        super().__init__(source, streams)

    def next_pictures(self) -> list[Image.Image]:
        """Of this process, for the next step, in the order of their lanes."""
        return [next(stream) for stream in self.streams.values()]

    def last_samples(self) -> list[str]:
        return [stream.last_sample for stream in self.streams.values()]
