"""Writing the frozen encoder's features of all images of the data to disk, once, and beside them a
VAE's latents.

Shards appear whole or not at all, so a run that was cut short goes on after its last shard.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from metamorph.data.bad_list import OnBad, ignore
from metamorph.data.features import FeatureIndex, stored_features
from metamorph.data.images import DECODING, key_of, opened
from metamorph.data.latents import FOLDER as LATENTS
from metamorph.data.latents import LatentEncoder, LatentIndex, stored_latents
from metamorph.data.shard_writer import ShardWriter, broken_shards, resume
from metamorph.data.shards import INDEX
from metamorph.data.skips import Skips, located, skippable
from metamorph.data.sources import Source
from metamorph.errors import SampleError
from metamorph.model.encoder_identity import identity
from metamorph.model.precision import autocast
from metamorph.model.vision import VisionEncoder
from metamorph.pixels import Fit, Square

AHEAD = 4  # samples that a thread opens ahead
# Of an image, as each cache takes it; None where it has it.
Squares = tuple[Image.Image | None, ...]


class Waiting(NamedTuple):
    """An image of which something is not encoded yet."""

    sample: int  # its number
    key: bytes
    squares: Squares


@dataclass
class Cache:
    """A folder that gets something of every picture."""

    square: Square  # what pictures become first
    encode: Callable[[list[Image.Image]], tuple[dict[str, Tensor], Tensor]]  # see `ShardWriter.add`
    writer: ShardWriter
    done: set[bytes]  # keys of what it has


def encode(
    parts: dict[str, Source],
    vision: VisionEncoder,
    folder: Path,
    dtype: str,
    *,
    fit: Fit = "squash",
    latents: LatentEncoder | None = None,
    precision: str = "fp32",
    batch_size: int = 64,
    shard_rows: int = 4096,
    threads: int = 4,
    on_bad: OnBad = ignore,
) -> tuple[FeatureIndex, Skips]:
    """Features of every image of the parts, each once, in `folder`, and with `latents` those in the
    folder of that name in it.

    What is there already and still has its hash is kept. `fit`: how pictures become squares, for
    the features; latents as their encoder takes them, as fp16 if `dtype` is int8. Returns the index
    and the samples that could not be read, of which `on_bad` is told at once. Raises `UserError` if
    the folder holds something of another kind.
    """
    caches = [_feature_cache(vision, folder, dtype, fit, precision, shard_rows)]
    if latents is not None:
        stored = "fp16" if dtype == "int8" else dtype
        caches.append(_latent_cache(latents, folder / LATENTS, stored, precision, shard_rows))
    done = set.intersection(*(cache.done for cache in caches))
    skips = Skips()
    waiting: list[Waiting] = []

    def encode_batch() -> None:
        batch = waiting[:batch_size]
        for number, cache in enumerate(caches):
            squares = {w.key: s for w in batch if (s := w.squares[number]) is not None}
            if squares:
                with torch.no_grad():
                    cache.writer.add([*squares], *cache.encode([*squares.values()]))
        del waiting[:batch_size]

    with closing(Progress(sum(map(len, parts.values())), len(done))) as progress:
        try:
            for name, images in _loaded(parts, caches, done, threads):
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
            for cache in caches:
                cache.writer.flush()  # what is encoded is kept, too, when Ctrl-C ends it
    return caches[0].writer.index, skips


def _feature_cache(
    vision: VisionEncoder, folder: Path, dtype: str, fit: Fit, precision: str, shard_rows: int
) -> Cache:
    wanted = FeatureIndex(
        identity(vision), vision.grid, vision.width, dtype=dtype, decoding=DECODING, fit=fit
    )
    index, done = resume(folder, wanted, ("encoder", "grid", "width", "dtype", "fit"))
    device = vision.device

    def features(images: list[Image.Image]) -> tuple[dict[str, Tensor], Tensor]:
        with autocast(precision, device):
            return stored_features(vision(vision.preprocess(images)), dtype)

    square = replace(vision.square, fit=fit)
    return Cache(square, features, ShardWriter(folder, index, shard_rows), done)


def _latent_cache(
    encoder: LatentEncoder, folder: Path, dtype: str, precision: str, shard_rows: int
) -> Cache:
    square = encoder.square
    wanted = LatentIndex(
        encoder.identity, square.side, *encoder.shape,
        dtype=dtype, decoding=DECODING, fit=square.fit,
    )  # fmt: skip
    facts = ("vae", "fit", "side", "channels", "size", "dtype")
    index, done = resume(folder, wanted, facts)

    def latents(images: list[Image.Image]) -> tuple[dict[str, Tensor], Tensor]:
        with autocast(precision, encoder.device):
            return stored_latents(*encoder.posterior(images), dtype)

    return Cache(square, latents, ShardWriter(folder, index, shard_rows), done)


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
    """The shards of a folder, and of latents in it, whose content is not what the index says."""
    broken = broken_shards(FeatureIndex, folder)
    if (folder / LATENTS / INDEX).exists():
        inner = broken_shards(LatentIndex, folder / LATENTS)
        broken += [f"{LATENTS}/{name}" for name in inner]
    return broken


def _loaded(
    parts: dict[str, Source], caches: list[Cache], done: set[bytes], threads: int
) -> Iterator[tuple[str, list[tuple[bytes, Squares]] | SampleError]]:
    """Every sample in turn: its part, with key and squares of those of its images that are not
    `done`, each once, or why it is bad. What is given counts as done."""

    def squares(image, key: bytes) -> Squares:
        shown = opened(image)
        return tuple(None if key in cache.done else cache.square(shown) for cache in caches)

    def load(source: Source, index: int) -> list[tuple[bytes, Squares]] | SampleError:
        loaded: dict[bytes, Squares] = {}
        try:
            with skippable(f"sample {index}"):
                sample = source.sample(index)
            with located(sample.where or f"sample {sample.id}"):
                for image in sample.images:
                    key = key_of(image)
                    if key not in done and key not in loaded:
                        loaded[key] = squares(image, key)
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
