"""Where samples come from. A source maps an index to a sample, and nothing else has state.

The order is a pure function of (seed, epoch, index), so that a run resumes by remembering one
number.
"""

import json
from pathlib import Path
from typing import Protocol

import torch

from metamorph.config import DataConfig
from metamorph.data.conversation import ROLES, Sample, SampleError, Turn
from metamorph.data.images import open_image, resolve_inside
from metamorph.data.toy_tasks import DEFAULT_WEIGHTS, KINDS, make_task
from metamorph.errors import UserError


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
        self.seed = seed
        self.weights = weights or DEFAULT_WEIGHTS
        self.samples = samples or self.EPOCH

    def __len__(self) -> int:
        return self.samples

    def sample(self, index: int) -> Sample:
        return make_task(self.seed, index % self.samples, "train", self.weights).sample


class JsonLines:
    """LLaVA conversations, one JSON object a line, with images below ``image_root``.

    Only the line offsets are kept in memory; a line is parsed and its images are opened when its
    turn comes.
    """

    def __init__(self, path: Path, image_root: Path, max_pixels: int, seed: int, shuffle: bool):
        if not path.is_file():
            raise UserError(f"data.path: {path} does not exist, expected a JSONL file")
        if not image_root.is_dir():
            raise UserError(f"data.image_root: {image_root} is not a folder")
        self.path, self.image_root, self.max_pixels = path, image_root, max_pixels
        self.seed, self.shuffle = seed, shuffle
        self.lines = []  # (byte offset, line number) of every line with content
        with path.open("rb") as file:
            offset = 0
            for number, line in enumerate(file, start=1):
                if line.strip():
                    self.lines.append((offset, number))
                offset += len(line)
        if not self.lines:
            raise UserError(f"data.path: {path} holds no samples")
        self._epoch, self._order = -1, torch.empty(0)

    def __len__(self) -> int:
        return len(self.lines)

    def _line_of(self, index: int) -> int:
        if not self.shuffle:
            return index % len(self)
        epoch = index // len(self)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self), generator=generator)
        return int(self._order[index % len(self)])

    def sample(self, index: int) -> Sample:
        offset, number = self.lines[self._line_of(index)]
        with self.path.open("rb") as file:
            file.seek(offset)
            line = file.readline()
        where = f"{self.path}:{number}"
        try:
            record = json.loads(line)
            names = record.get("image", [])
            names = [names] if isinstance(names, str) else names
            turns = tuple(
                Turn(ROLES[turn["from"]], turn["value"]) for turn in record["conversations"]
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            message = f"{where}: {type(error).__name__}: {error}"
            raise SampleError("malformed line", message) from error
        try:
            images = tuple(
                open_image(resolve_inside(self.image_root, name), self.max_pixels) for name in names
            )
        except SampleError as error:
            raise SampleError(error.cause, f"{where}: {error}") from error
        return Sample(str(record.get("id", where)), turns, images)


def open_source(config: DataConfig, seed: int) -> Source:
    """The source that a run's ``data`` section names."""
    if config.source == "toy_scenes":
        return ToyScenes(seed, config.kinds, config.samples)
    return JsonLines(
        Path(config.path), Path(config.image_root), config.max_pixels, seed, config.shuffle
    )
