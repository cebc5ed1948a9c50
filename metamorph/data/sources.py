"""Where samples come from. A source maps an index to a sample, and nothing else has state.

The order is a pure function of (seed, epoch, index), so that a run resumes by remembering one
number.
"""

import json
import math
from pathlib import Path
from typing import Protocol

import torch

from metamorph.config import DataConfig
from metamorph.data.conversation import ROLES, Sample, SampleError, Turn
from metamorph.data.images import open_image, resolve_inside, shorten
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
        if weights and not 0 < sum(weights.values()) < math.inf:
            raise UserError(f"data.kinds: {weights} holds no kind with a weight above 0")
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
            names = _image_names(record.get("image"))
            turns = tuple(_turn(turn) for turn in record["conversations"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            message = f"{where}: {type(error).__name__}: {error}"
            raise SampleError("malformed line", message) from error
        try:
            images = tuple(
                open_image(resolve_inside(self.image_root, name), self.max_pixels) for name in names
            )
        except SampleError as error:
            raise SampleError(error.cause, f"{where}: {error}") from error
        return Sample(str(record.get("id", where)), turns, images)


def _image_names(value: object) -> list[str]:
    """The names under ``image``: none, one or a list."""
    names = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"image: expected a name or a list of names, got {shorten(repr(value))}")
    return names


def _turn(turn: dict) -> Turn:
    text = turn["value"]
    if not isinstance(text, str):
        raise ValueError(f"value: expected text, got {shorten(repr(text))}")
    text.encode()  # half a surrogate pair, which JSON can spell, is a ValueError here
    return Turn(ROLES[turn["from"]], text)


def open_source(config: DataConfig, seed: int) -> Source:
    """The source that a run's ``data`` section names. Raises ``UserError`` if it cannot be used."""
    if config.source == "toy_scenes":
        return ToyScenes(seed, config.kinds, config.samples)
    if not config.path:
        raise UserError("data.path: it is empty, expected a JSONL file")
    path = Path(config.path)
    image_root = Path(config.image_root) if config.image_root else path.parent
    return JsonLines(path, image_root, config.max_pixels, seed, config.shuffle)
