"""The pictures of a source alone, as the decoder's training takes them."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from metamorph.data.ahead import Ahead
from metamorph.data.features import FeatureFolder
from metamorph.data.images import key_of, opened
from metamorph.data.lanes import OwnLanes
from metamorph.data.latents import LatentFolder
from metamorph.data.packing import MOST_IN_A_ROW
from metamorph.data.skips import Skips, located, skippable
from metamorph.data.sources import Source
from metamorph.errors import SampleError, UserError
from metamorph.pixels import Square


@dataclass(frozen=True)
class PreparedPicture:
    """A picture as the encoder and as the decoder take it, or what is cached of that. Arrays, for
    they pass between processes.

    `encoder_pixels` uint8 [S, S, 3], or `features` fp32 [tokens, C]; `pixels` uint8
    [side, side, 3], or `latents` fp32 [2, channels, h, w], mean and standard deviation.
    """

    encoder_pixels: np.ndarray | None = None
    pixels: np.ndarray | None = None
    features: np.ndarray | None = None
    latents: np.ndarray | None = None


@dataclass(frozen=True)
class SamplePictures:
    """Those of one sample, up to the first that cannot be used, and why that one cannot."""

    sample_id: str
    pictures: tuple[PreparedPicture, ...]
    error: SampleError | None = None


@dataclass(frozen=True)
class Pictures:
    """The samples of a source as `PictureStream` takes them, each a pure function of its index.

    `encoder_square` and `square`: how the encoder and the decoder take a picture. `features` and
    `latents` are read in place of what they were made of.
    """

    source: Source
    encoder_square: Square
    square: Square
    features: FeatureFolder | None = None
    latents: LatentFolder | None = None

    def __len__(self) -> int:
        """Samples of one epoch."""
        return len(self.source)

    def sample(self, index: int) -> SamplePictures:
        """Raises `SampleError` for a sample none of whose pictures can be told."""
        with skippable(f"sample {index}"):
            sample = self.source.sample(index)
        prepared = []
        for image in sample.images:
            try:
                with located(sample.where or f"sample {sample.id}"):
                    prepared.append(self._prepared(image))
            except SampleError as error:
                return SamplePictures(sample.id, tuple(prepared), error)
        return SamplePictures(sample.id, tuple(prepared))

    def _prepared(self, image) -> PreparedPicture:
        found: dict[str, np.ndarray] = {}
        is_cached = self.features is not None or self.latents is not None
        key = key_of(image) if is_cached else b""
        if self.features is not None:
            found["features"] = self.features.read([key])[0].numpy()
        if self.latents is not None:
            found["latents"] = self.latents.read(key).numpy()
        if len(found) < 2:
            image = opened(image)
        if self.features is None:
            found["encoder_pixels"] = np.asarray(self.encoder_square(image))
        if self.latents is None:
            found["pixels"] = np.asarray(self.square(image))
        return PreparedPicture(**found)


@dataclass
class PictureStream:
    """Endless pictures of one lane: of the samples at l, l + n, l + 2n, ... for lane l of n.

    `sample`: `Pictures.sample`, or the same made ahead; `epoch`: samples of one. Unusable samples
    are counted in `skips`.
    """

    sample: Callable[[int], SamplePictures]
    epoch: int
    lane: int = 0
    lanes: int = 1
    skips: Skips = field(default_factory=Skips)
    last_sample: str = ""  # the id behind the last picture

    def __post_init__(self):
        self.index, self.place = self.lane, 0  # of the next picture: its sample, and which of it
        self.opened: SamplePictures | None = None  # that sample, once it was asked for

    @property
    def used(self) -> int:
        """Samples that were begun or skipped."""
        return self.skips.tried

    def __next__(self) -> PreparedPicture:
        tries = min(2 * self.epoch, MOST_IN_A_ROW)  # as in RowStream
        for _ in range(tries):
            self.skips.tried += self.place == 0
            try:
                if self.opened is None:
                    self.opened = self.sample(self.index)
                if self.place < len(self.opened.pictures):
                    self.place += 1
                    self.last_sample = self.opened.sample_id
                    return self.opened.pictures[self.place - 1]
                if self.opened.error is not None:
                    raise self.opened.error
            except SampleError as error:
                self.skips.add(error)
            self.index, self.place, self.opened = self.index + self.lanes, 0, None
        raise UserError(
            f"data: no picture in {tries} samples in a row; skipped: {self.skips.examples}"
        )

    def state_dict(self) -> dict:
        return {"index": self.index, "place": self.place, **self.skips.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.index, self.place, self.opened = state["index"], state["place"], None
        self.skips.load_state_dict(state)


class PictureLanes(OwnLanes[PictureStream]):
    """The lanes of one process: each gives one picture of every batch, whoever computes it.

    `batch_size`: pictures of a step over all processes, which is the number of lanes, and which
    `world_size` must divide. `workers`: processes that prepare them ahead, 0 for none.
    """

    def __init__(
        self,
        pictures: Pictures,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
    ):
        own = range(rank, batch_size, world_size)
        self.ahead, sample = None, pictures.sample
        if workers:
            self.ahead = Ahead(pictures.sample, workers, batch_size, len(own))
            sample = self.ahead.take
        epoch = len(pictures)
        streams = {lane: PictureStream(sample, epoch, lane, batch_size) for lane in own}
        super().__init__(pictures.source, streams)

    def next_pictures(self) -> list[PreparedPicture]:
        """Of this process, for the next step, in the order of their lanes."""
        return [next(stream) for stream in self.streams.values()]

    def last_samples(self) -> list[str]:
        return [stream.last_sample for stream in self.streams.values()]

    def close(self) -> None:
        """Ends the processes that prepare pictures."""
        if self.ahead is not None:
            self.ahead.close()
