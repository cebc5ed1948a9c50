"""Visual features on disk, in place of images: reading what `metamorph encode` wrote.

    index.json               the encoder's identity, the grid, the stored form and its error, shards
    shard-00000.safetensors  features [rows, tokens, C] and keys [rows, 32]

Features are unit vectors, so int8 codes need no scale: made unit length again, they are what a
scale for each token would give.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from metamorph.data.images import DECODING
from metamorph.disk import in_threads, sha256_of
from metamorph.errors import SampleError, UserError, within
from metamorph.model.vision import VisionEncoder
from metamorph.model.weights import read_json
from metamorph.processes import gather, share

DTYPES = {"bf16": torch.bfloat16, "int8": torch.int8, "fp32": torch.float32}
IN_FILES = {"bf16": "BF16", "int8": "I8", "fp32": "F32"}  # as safetensors calls them
INDEX = "index.json"
KEY_BYTES = 32
LARGEST_CODE = 127
ANEW = "metamorph encode with the same output makes it anew"


@dataclass(frozen=True)
class Shard:
    """One file of features. Errors are 1 - cosine between what is stored and fp32."""

    file: str
    rows: int
    sha256: str
    mean_error: float
    largest_error: float


@dataclass(frozen=True)
class FeatureIndex:
    """What `index.json` says. `encoder`: see `identity`; `decoding`: `images.DECODING` of then."""

    encoder: str
    grid: int
    width: int
    dtype: str  # a key of DTYPES
    shards: tuple[Shard, ...] = ()
    decoding: int = 1  # of folders that were written before it was kept

    @classmethod
    def read(cls, folder: Path) -> "FeatureIndex":
        """Raises `UserError` if there is none, or it was changed by hand."""
        values = read_json(folder / INDEX)
        try:
            shards = tuple(Shard(**shard) for shard in values.pop("shards"))
            index = cls(**values, shards=shards)
            if index.is_sound():
                return index
        except (TypeError, KeyError, AttributeError):
            pass  # as for one whose fields have values of another kind
        raise UserError(
            f"{folder / INDEX} is no index of features: a field is missing, unknown or of "
            f"another kind; {ANEW}"
        )

    def is_sound(self) -> bool:
        """Whether all is of its kind: `index.json` may hold anything."""
        counts = [self.grid, self.width, *(shard.rows for shard in self.shards)]
        errors = [e for shard in self.shards for e in (shard.mean_error, shard.largest_error)]
        return (
            self.dtype in DTYPES
            and all(Path(shard.file).name == shard.file != "" for shard in self.shards)
            and all(type(count) is int and count > 0 for count in counts)
            and all(type(error) in (int, float) for error in errors)
        )

    def to_dict(self) -> dict:
        return asdict(self)

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def mean_error(self) -> float:
        """Of all rows; 0 if there are none."""
        return sum(s.mean_error * s.rows for s in self.shards) / max(self.rows, 1)

    @property
    def largest_error(self) -> float:
        return max((shard.largest_error for shard in self.shards), default=0.0)


def identity(vision: VisionEncoder) -> str:
    """A hash of all that decides an encoder's features: weights, shapes, preprocessing, grid.

    Weights count as bfloat16, in which a model folder may hold its copy of the encoder.
    """
    facts = [vision.config.image_size, vision.config.patch_size, vision.mean, vision.std]
    facts += [vision.grid, vision.config.num_attention_heads, vision.config.hidden_act]
    facts += [vision.config.layer_norm_eps, int(vision.square.resample)]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for name, tensor in sorted(vision.tower.state_dict().items()):
        if name.startswith(("embeddings.", "encoder.")):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            if tensor.is_floating_point():
                rounded = tensor.detach().cpu().to(torch.bfloat16).contiguous()
                digest.update(rounded.view(torch.int16).numpy().data)
    return digest.hexdigest()


def store(features: Tensor, dtype: str) -> Tensor:
    """Unit vectors [..., C] in their stored form, one of `DTYPES`."""
    if dtype != "int8":
        return features.to(DTYPES[dtype])
    largest = features.abs().amax(-1, keepdim=True).clamp(min=1e-12)
    return (features.float() / largest * LARGEST_CODE).round().to(torch.int8)


def restore(stored: Tensor) -> Tensor:
    """fp32 unit vectors [..., C] of what `store` made."""
    features = stored.float()
    return F.normalize(features, dim=-1) if stored.dtype == torch.int8 else features


class FeatureFolder:
    """Features by key. Files are mapped into memory; all keys are held, 32 bytes each.

    With `verify`, all shards are read once and compared with the SHA-256 that the index has of
    them; all processes of a run call this then, and share the reading. Raises `UserError` for a
    shard that differs, or is no shard.
    """

    def __init__(self, folder: Path, verify: bool = True):
        self.folder = folder
        self.index = FeatureIndex.read(folder)
        if verify:
            self._verify()
        shards = self.index.shards
        unsorted = np.concatenate(
            [np.zeros((0, KEY_BYTES), np.uint8), *(self._keys(shard) for shard in shards)]
        )
        self.order = np.argsort(_beginnings(unsorted))  # rows of all shards, sorted by key
        self.keys = unsorted[self.order]
        self.beginnings = _beginnings(self.keys)
        self.starts = np.cumsum([0] + [shard.rows for shard in self.index.shards])
        self._files: dict[int, safe_open] = {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": {}}  # each process opens its own

    def all_keys(self) -> list[bytes]:
        return [key.tobytes() for key in self.keys]

    def read(self, keys: list[bytes]) -> Tensor:
        """fp32 [len(keys), tokens, C]. Raises `SampleError` for a key that is not there."""
        tokens, width = self.index.grid**2, self.index.width
        found = [torch.zeros(0, tokens, width)]
        for key in keys:
            row = self._row(key)
            if row is None:
                message = f"no features of image {key.hex()[:16]} in {self.folder}"
                raise SampleError("feature missing", message)
            shard = int(np.searchsorted(self.starts, row, side="right")) - 1
            if shard not in self._files:
                self._files[shard] = self._open(self.index.shards[shard])
            start = row - int(self.starts[shard])
            stored = self._files[shard].get_slice("features")[start : start + 1]
            found.append(restore(stored))
        return torch.cat(found)

    def _row(self, key: bytes) -> int | None:
        wanted = np.frombuffer(key, np.uint8)
        place = int(np.searchsorted(self.beginnings, _beginnings(wanted[None])[0]))
        while place < len(self.keys) and (self.keys[place, :8] == wanted[:8]).all():
            if (self.keys[place] == wanted).all():
                return int(self.order[place])
            place += 1
        return None

    def _verify(self) -> None:
        own = share(list(self.index.shards))
        paths = [self.folder / shard.file for shard in own]
        try:
            hashes = in_threads(sha256_of, paths)
            differing = [p for p, s, h in zip(paths, own, hashes, strict=True) if h != s.sha256]
            problems = [
                f"{path} is not what was written (its SHA-256 differs)" for path in differing
            ]
        except OSError as error:
            problems = [f"{error.filename} cannot be read ({error.strerror})"]
        for problem in chain.from_iterable(gather(problems)):
            raise UserError(f"{problem}; {ANEW}")

    def _keys(self, shard: Shard) -> np.ndarray:
        """uint8 [rows, 32] of a shard that is what the index says of it."""
        path, file = self.folder / shard.file, self._open(shard)
        try:
            stored = file.get_slice("features")
            shape, dtype = stored.get_shape(), stored.get_dtype()
            keys = file.get_tensor("keys")
        except SafetensorError as error:
            raise UserError(f"{path} is no shard of features ({error}); {ANEW}") from error
        expected = [shard.rows, self.index.grid**2, self.index.width]
        if shape != expected or dtype != IN_FILES[self.index.dtype]:
            raise UserError(
                f"{path}: features are {dtype} of shape {shape}, expected "
                f"{IN_FILES[self.index.dtype]} of shape {expected}; {ANEW}"
            )
        if keys.shape != (shard.rows, KEY_BYTES) or keys.dtype != torch.uint8:
            raise UserError(f"{path}: keys are {keys.dtype} of shape {list(keys.shape)}; {ANEW}")
        return keys.numpy()

    def _open(self, shard: Shard):
        path = self.folder / shard.file
        try:
            return safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read ({error}); {ANEW}") from error


def _beginnings(keys: np.ndarray) -> np.ndarray:
    """The first 8 bytes of each key [N, 32] as a number, to search by."""
    return np.ascontiguousarray(keys[:, :8]).view(np.uint64).ravel()


def other_decoding(index: FeatureIndex) -> str:
    """Why features of another way to read pictures are refused."""
    return (
        f"holds features of pictures as another version of metamorph read them (decoding "
        f"{index.decoding}, now {DECODING}); encode the data anew into another folder"
    )


def open_features(folder: str, vision: VisionEncoder, verify: bool = True) -> FeatureFolder:
    """The folder `data.features`, see `FeatureFolder`. Raises `UserError` if another encoder made
    it, or if its pictures were read in another way."""
    with within("data.features"):
        index = FeatureIndex.read(Path(folder))
        if index.decoding != DECODING:
            raise UserError(f"{folder} {other_decoding(index)}")
        features = FeatureFolder(Path(folder), verify)
        if features.index.encoder != identity(vision):
            raise UserError(
                f"{folder} was made by another encoder, or for another grid than {vision.grid}; "
                f"encode the data anew"
            )
    return features
