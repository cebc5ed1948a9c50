"""Where samples come from. A source maps an index to a sample, and nothing else has state.

The order is a pure function of (seed, epoch, index), so that a run resumes by remembering one
number.
"""

import math
from functools import partial
from pathlib import Path
from typing import Protocol

from metamorph.config import DataConfig, SourceConfig
from metamorph.data.boxes import boxes
from metamorph.data.conversation import Sample
from metamorph.data.families import captions, conversations, edits
from metamorph.data.json_lines import JsonLines
from metamorph.data.order import BlockOrder, shuffled
from metamorph.data.parquet import Parquet
from metamorph.data.records import Records
from metamorph.data.toy_tasks import DEFAULT_WEIGHTS, KINDS, make_task
from metamorph.data.video_families import Sampling, video_frames, video_questions
from metamorph.data.web_dataset import WebDataset
from metamorph.errors import SampleError, UserError


class Source(Protocol):
    """``len`` is the samples of one epoch; indices run on through the epochs."""

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample:
        """Sample at a position of the endless order. Raises ``SampleError`` if it is unusable."""


class ToyScenes:
    """Endless generated samples of the training split; see ``toy_tasks``."""

    EPOCH = 1_000_000  # every index is another sample; an epoch is only a unit of counting

    def __init__(self, seed: int, weights: dict[str, float], samples: int):
        unknown = sorted(set(weights) - set(KINDS))
        if unknown:
            raise UserError(f"data.kinds: unknown {unknown}, expected some of {sorted(KINDS)}")
        if weights and not 0 < sum(weights.values()) < math.inf:
            raise UserError(f"data.kinds: {weights} holds no kind with a weight above 0")
        self.seed = seed
        self.weights = weights or DEFAULT_WEIGHTS
        self.samples = samples or self.EPOCH

    def __len__(self) -> int:
        return self.samples

    def sample(self, index: int) -> Sample:
        return make_task(self.seed, index % self.samples, "train", self.weights).sample


class RecordSource:
    """The records of files as samples, in an order that depends on the seed and epoch.

    ``family`` says what conversation a record stands for, see ``families``.
    """

    def __init__(self, records: Records, family, seed: int, shuffle: bool):
        self.records, self.family = records, family
        self.seed, self.shuffle = seed, shuffle
        self.block_order = BlockOrder(records.blocks, seed) if records.blocks else None

    def __len__(self) -> int:
        return len(self.records)

    def _position(self, index: int) -> int:
        epoch, place = divmod(index, len(self))
        if not self.shuffle:
            return place
        if self.block_order is not None:
            return self.block_order.place(place, epoch)
        return shuffled(place, len(self), self.seed, epoch)

    def sample(self, index: int) -> Sample:
        position = self._position(index)
        where = self.records.where(position)
        try:
            return self.family(self.records.record(position))
        except SampleError as error:
            raise SampleError(error.cause, f"{where}: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            message = f"{where}: {type(error).__name__}: {error}"
            raise SampleError("malformed record", message) from error


def open_source(config: DataConfig, seed: int) -> Source:
    """The source that a run's ``data`` section names. Raises ``UserError`` if it cannot be used."""
    if config.source == "mixture":
        from metamorph.data.mixture import open_mixture

        return open_mixture(config, seed)
    return open_part(config, Path(), config.max_pixels, seed, config.shuffle)


def open_part(
    config: SourceConfig, base: Path, max_pixels: int, seed: int, shuffle: bool
) -> Source:
    """One source that is no mixture; relative paths start from ``base``."""
    if config.source == "toy_scenes":
        return ToyScenes(seed, config.kinds, config.samples)
    if not config.path:
        raise UserError("data.path: it is empty, expected the file or folder of the samples")
    path = base / config.path
    if config.source == "jsonl":
        image_root = base / config.image_root if config.image_root else path.parent
        records = JsonLines(path, image_root, max_pixels, config.fields)
    elif config.source == "webdataset":
        records = WebDataset(path, max_pixels, config.fields)
    else:
        records = Parquet(path, max_pixels, config.fields)
    sampling = Sampling(config.frames_per_second, config.max_frames)
    families = {
        "conversations": conversations,
        "captions": captions,
        "edits": edits,
        "boxes": partial(boxes, seed=seed),
        "video_questions": partial(video_questions, sampling=sampling),
        "video_frames": partial(video_frames, sampling=sampling, seed=seed),
    }
    return RecordSource(records, families[config.family], seed, shuffle)
