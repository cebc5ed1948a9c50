"""Writing the frozen encoder's features of all images of the data to disk, once.

Shards appear whole or not at all, so a run that was cut short goes on after its last shard.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from metamorph.data.features import (
    INDEX,
    KEY_BYTES,
    FeatureFolder,
    FeatureIndex,
    Shard,
    identity,
    restore,
    store,
)
from metamorph.data.images import key_of, opened, squashed
from metamorph.data.skips import Skips, located, skippable
from metamorph.data.sources import Source
from metamorph.disk import atomic_path, sha256_of
from metamorph.errors import SampleError, UserError
from metamorph.model.precision import autocast
from metamorph.model.vision import VisionEncoder
from metamorph.model.weights import write_json

AHEAD = 4  # samples that a thread opens ahead


@dataclass
class FeatureWriter:
    """Gathers features and writes a shard whenever `shard_rows` are there."""

    folder: Path
    index: FeatureIndex
    shard_rows: int
    keys: list[bytes] = field(default_factory=list)
    stored: list[Tensor] = field(default_factory=list)  # [tokens, C] each
    errors: list[Tensor] = field(default_factory=list)  # [tokens] each

    def add(self, keys: Sequence[bytes], features: Tensor) -> None:
        """`features`: [len(keys), tokens, C], what the encoder said."""
        stored = store(features.cpu(), self.index.dtype)
        cosine = F.cosine_similarity(restore(stored), features.float().cpu(), dim=-1)
        self.errors += (1 - cosine).clamp(min=0).unbind()
        self.keys += keys
        self.stored += stored.unbind()
        while len(self.keys) >= self.shard_rows:
            self.flush()

    def flush(self) -> None:
        """Writes what is there, at most `shard_rows`, and lists it in the index."""
        rows = min(len(self.keys), self.shard_rows)
        if not rows:
            return
        taken = {shard.file for shard in self.index.shards}
        names = (f"shard-{number:05d}.safetensors" for number in range(len(taken) + 1))
        name = next(name for name in names if name not in taken)
        keys = np.frombuffer(b"".join(self.keys[:rows]), np.uint8).reshape(rows, KEY_BYTES)
        tensors = {
            "features": torch.stack(self.stored[:rows]),
            "keys": torch.from_numpy(keys.copy()),
        }
        with atomic_path(self.folder / name) as temporary:
            save_file(tensors, temporary)
            digest = sha256_of(temporary)
        errors = torch.stack(self.errors[:rows])
        shard = Shard(name, rows, digest, errors.mean().item(), errors.max().item())
        self.index = replace(self.index, shards=(*self.index.shards, shard))
        write_json(self.folder / INDEX, self.index.to_dict())
        del self.keys[:rows], self.stored[:rows], self.errors[:rows]


def encode(
    parts: dict[str, Source],
    vision: VisionEncoder,
    folder: Path,
    dtype: str,
    *,
    precision: str = "fp32",
    batch_size: int = 64,
    shard_rows: int = 4096,
    threads: int = 4,
) -> tuple[FeatureIndex, Skips]:
    """Features of every image of the parts, each once, in `folder`.

    What is there already and still has its hash is kept. Returns the index and the samples that
    could not be read. Raises `UserError` if the folder holds features of another kind.
    """
    index, done = _resume(folder, FeatureIndex(identity(vision), vision.grid, vision.width, dtype))
    write_json(folder / INDEX, index.to_dict())
    writer = FeatureWriter(folder, index, shard_rows)
    device = vision.tower.embeddings.patch_embedding.weight.device
    skips = Skips()
    images = _new_images(parts, vision.image_size, done, skips, threads)
    while batch := [*islice(images, batch_size)]:
        pixels = vision.preprocess([image for _, image in batch])
        with torch.no_grad(), autocast(precision, device):
            features = vision(pixels)
        writer.add([key for key, _ in batch], features)
    writer.flush()
    return writer.index, skips


def verify(folder: Path) -> list[str]:
    """The shards of a folder whose content is not what the index says."""
    return [
        shard.file for shard in FeatureIndex.read(folder).shards if not _is_whole(folder, shard)
    ]


def _resume(folder: Path, wanted: FeatureIndex) -> tuple[FeatureIndex, set[bytes]]:
    """The index to go on with, whose shards are whole, and the keys that they hold."""
    if not (folder / INDEX).exists():
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"--output: {folder} holds something else, expected a new folder")
        return wanted, set()
    found = FeatureIndex.read(folder)
    for name in ("encoder", "grid", "width", "dtype"):
        if getattr(found, name) != getattr(wanted, name):
            raise UserError(
                f"--output: {folder} holds features of {name} {getattr(found, name)}, "
                f"not {getattr(wanted, name)}; give another folder"
            )
    whole = tuple(shard for shard in found.shards if _is_whole(folder, shard))
    index = replace(found, shards=whole)
    write_json(folder / INDEX, index.to_dict())
    return index, set(FeatureFolder(folder, verify=False).all_keys())


def _new_images(
    parts: dict[str, Source], size: int, done: set[bytes], skips: Skips, threads: int
) -> Iterator[tuple[bytes, Image.Image]]:
    """Key and squashed image of every image that is not `done`, each once."""

    def load(source: Source, index: int) -> list[tuple[bytes, Image.Image]]:
        loaded = []
        with skippable(f"sample {index}"):
            sample = source.sample(index)
        with located(sample.where or f"sample {sample.id}"):
            for image in sample.images:
                key = key_of(image)
                if key not in done:
                    loaded.append((key, squashed(opened(image), size)))
        return loaded

    with ThreadPoolExecutor(threads) as pool:
        for name, source in parts.items():
            loading = deque()
            following = iter(range(len(source)))
            for _ in tqdm(range(len(source)), desc=name, unit=" samples", mininterval=1):
                for index in islice(following, AHEAD * threads - len(loading)):
                    loading.append(pool.submit(load, source, index))
                skips.tried += 1
                try:
                    loaded = loading.popleft().result()
                except SampleError as error:
                    skips.add(error)
                    continue
                for key, image in loaded:
                    if key not in done:
                        done.add(key)
                        yield key, image


def _is_whole(folder: Path, shard: Shard) -> bool:
    path = folder / shard.file
    return path.is_file() and sha256_of(path) == shard.sha256
