"""Writing the frozen encoder's features of all images of the data to disk, once.

Shards appear whole or not at all, so a run that was cut short goes on after its last shard.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from metamorph import lock
from metamorph.data.bad_list import OnBad, ignore
from metamorph.data.features import (
    INDEX,
    KEY_BYTES,
    FeatureFolder,
    FeatureIndex,
    Shard,
    identity,
    other_decoding,
    restore,
    store,
)
from metamorph.data.images import DECODING, key_of, opened
from metamorph.data.skips import Skips, located, skippable
from metamorph.data.sources import Source
from metamorph.disk import atomic_path, sha256_of
from metamorph.errors import SampleError, UserError
from metamorph.model.precision import autocast
from metamorph.model.vision import VisionEncoder
from metamorph.model.weights import write_json
from metamorph.pixels import Square

AHEAD = 4  # samples that a thread opens ahead


class Waiting(NamedTuple):
    """An image that is not encoded yet."""

    sample: int  # its number
    key: bytes
    image: Image.Image  # squashed


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
    on_bad: OnBad = ignore,
) -> tuple[FeatureIndex, Skips]:
    """Features of every image of the parts, each once, in `folder`.

    What is there already and still has its hash is kept. Returns the index and the samples that
    could not be read, of which `on_bad` is told at once. Raises `UserError` if the folder holds
    features of another kind.
    """
    wanted = FeatureIndex(identity(vision), vision.grid, vision.width, dtype, decoding=DECODING)
    index, done = _resume(folder, wanted)
    write_json(folder / INDEX, index.to_dict())
    writer = FeatureWriter(folder, index, shard_rows)
    device = vision.tower.embeddings.patch_embedding.weight.device
    skips = Skips()
    waiting: list[Waiting] = []

    def encode_batch() -> None:
        _, keys, images = zip(*waiting[:batch_size], strict=True)
        with torch.no_grad(), autocast(precision, device):
            features = vision(vision.preprocess([*images]))
        writer.add(keys, features)
        del waiting[:batch_size]

    with closing(Progress(sum(map(len, parts.values())), len(done))) as progress:
        try:
            for name, images in _loaded(parts, vision.square, done, threads):
                skips.tried += 1
                if isinstance(images, SampleError):
                    skips.add(images)
                    on_bad(name, images)
                else:
                    waiting += [Waiting(skips.tried, *image) for image in images]
                while len(waiting) >= batch_size:
                    encode_batch()
                progress.show(skips, len(done), waiting)
            while waiting:
                encode_batch()
            progress.show(skips, len(done), waiting)
        finally:
            writer.flush()  # what is encoded is kept, too, when Ctrl-C ends it
    return writer.index, skips


class Progress:
    """A bar over all samples. One is done when its images are encoded or known, or it is bad."""

    def __init__(self, samples: int, images: int):
        """`images`: how many an earlier run encoded."""
        self.images = images
        self.bar = tqdm(total=samples, desc="encode", unit=" samples", mininterval=1, smoothing=0)

    def show(self, skips: Skips, images: int, waiting: list[Waiting]) -> None:
        """`images`: how many were found so far, those included that wait to be encoded."""
        samples = skips.tried - len({image.sample for image in waiting})
        if images == self.images:
            # To find what an earlier run did is quick, and says nothing of the time for the rest.
            self.bar.initial, self.bar.start_t = samples, time.time()
        counts = f"{images - len(waiting)} images, {skips.counts.total()} skipped"
        self.bar.set_postfix_str(counts, refresh=False)
        self.bar.update(samples - self.bar.n)

    def close(self) -> None:
        self.bar.last_print_t = time.time()  # else one that never moved is left as it first was
        self.bar.close()


def verify(folder: Path) -> list[str]:
    """The shards of a folder whose content is not what the index says."""
    return [
        shard.file for shard in FeatureIndex.read(folder).shards if not _is_whole(folder, shard)
    ]


def _resume(folder: Path, wanted: FeatureIndex) -> tuple[FeatureIndex, set[bytes]]:
    """The index to go on with, whose shards are whole, and the keys that they hold."""
    if not (folder / INDEX).exists():
        if folder.exists() and any(path.name != lock.FILE for path in folder.iterdir()):
            raise UserError(f"--output: {folder} holds something else, expected a new folder")
        return wanted, set()
    found = FeatureIndex.read(folder)
    if found.decoding != wanted.decoding:
        raise UserError(f"--output: {folder} {other_decoding(found)}")
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


def _loaded(
    parts: dict[str, Source], square: Square, done: set[bytes], threads: int
) -> Iterator[tuple[str, list[tuple[bytes, Image.Image]] | SampleError]]:
    """Every sample in turn: its part, with key and squashed image of those of its images that are
    not `done`, each once, or why it is bad. What is given counts as done."""

    def load(source: Source, index: int) -> list[tuple[bytes, Image.Image]] | SampleError:
        loaded: dict[bytes, Image.Image] = {}
        try:
            with skippable(f"sample {index}"):
                sample = source.sample(index)
            with located(sample.where or f"sample {sample.id}"):
                for image in sample.images:
                    key = key_of(image)
                    if key not in done and key not in loaded:
                        loaded[key] = square(opened(image))
        except SampleError as error:
            return error
        return [*loaded.items()]

    with ThreadPoolExecutor(threads) as pool:
        for name, source in parts.items():
            loading = deque()
            following = iter(range(len(source)))
            for _ in range(len(source)):
                for index in islice(following, AHEAD * threads - len(loading)):
                    loading.append(pool.submit(load, source, index))
                loaded = loading.popleft().result()
                if not isinstance(loaded, SampleError):
                    new = {key: image for key, image in loaded if key not in done}
                    done.update(new)
                    loaded = [*new.items()]
                yield name, loaded


def _is_whole(folder: Path, shard: Shard) -> bool:
    path = folder / shard.file
    return path.is_file() and sha256_of(path) == shard.sha256
