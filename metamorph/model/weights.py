"""Folders of JSON, safetensors and tokenizer files: atomic writes, checked reads."""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from metamorph.disk import atomic_path, temporary_beside, write_text
from metamorph.errors import UserError, in_words, shown
from metamorph.folders import check_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
OUR_FILE = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
SHARD_BYTES = 5_000_000_000
SHARD_NAME = re.compile(r"[\w.-]+\.safetensors")  # a bare name: a shard lies beside its index


def read_json(path: Path) -> dict:
    """Read one JSON object. Raises UserError if it is absent, unreadable or not an object."""
    try:
        data = json.loads(check_file(Path(path), "a JSON file").read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a JSON object, got {shown(data)}")
    return data


def write_json(path: Path, data: Mapping) -> None:
    """Write `data` as indented JSON, atomically."""
    write_text(Path(path), json.dumps(data, indent=2, sort_keys=True) + "\n")


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read every tensor of a folder: one `model.safetensors`, or shards named by its index.

    Returns names to CPU tensors in the dtype of the file. Raises UserError if a file is
    absent or damaged; pickled checkpoints are refused.
    """
    folder = Path(folder)
    index_path = folder / INDEX_FILE
    if not index_path.exists():
        return read_file(folder / SINGLE_FILE)
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise UserError(f"{index_path}: expected the key 'weight_map' to map tensors to files")
    for file in weight_map.values():
        if not isinstance(file, str) or not SHARD_NAME.fullmatch(file):
            raise UserError(
                f"{index_path}: weight_map names {file!r}, expected the name of a .safetensors "
                f"file in the same folder"
            )
    tensors = {}
    for file in sorted(set(weight_map.values())):
        tensors.update(read_file(folder / file))
    absent = sorted(weight_map.keys() - tensors.keys())
    if absent:
        raise UserError(f"{index_path}: its shards do not hold the tensor {absent[0]!r}")
    return tensors


def read_file(path: Path) -> dict[str, Tensor]:
    """Every tensor of one safetensors file, as `read_tensors`."""
    check_file(path, "weights (they are read from safetensors only)")
    try:
        return load_file(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise UserError(f"{path}: damaged safetensors file: {error}") from None


def write_tensors(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    shard_bytes: int = SHARD_BYTES,
    whole: Callable[[Tensor], Tensor] = Tensor.detach,
) -> None:
    """Write tensors in the Hugging Face layout: one file, or shards of at most `shard_bytes`.

    Each file appears whole or not at all, and the index, which readers trust first, after its
    shards. Files of an earlier layout are removed at the end. No more than one file's tensors are
    copied to the CPU at a time, each by `whole`, in the order of `tensors`.
    """
    folder = Path(folder)
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    # Only names that stand for our files: `model-backup.safetensors` beside them is the user's.
    stale = {path for path in folder.glob("model*") if OUR_FILE.fullmatch(path.name)}
    count = len(shards)
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = SINGLE_FILE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
        shard = {name: whole(tensors[name]).to("cpu").contiguous() for name in names}
        write_file(folder / file, shard)
        del shard  # before the next one is gathered
        weight_map.update(dict.fromkeys(names, file))
        stale.discard(folder / file)
    if count > 1:
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / INDEX_FILE, index)
        stale.discard(folder / INDEX_FILE)
    # The index goes first: without it, a reader falls back to the single file just written.
    for path in sorted(stale, key=lambda path: path.name != INDEX_FILE):
        path.unlink(missing_ok=True)


def write_file(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write CPU tensors as one safetensors file, which appears whole or not at all."""
    with atomic_path(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata={"format": "pt"})
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(f"{path}: cannot write the file: {error}") from error


def check_tensors(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], folder: Path
) -> None:
    """Raise UserError unless `found` has exactly the names and shapes of `expected`. `folder`, or
    the one file, is where they were found."""
    for name, tensor in expected.items():
        if name not in found:
            raise UserError(f"{_where(folder)}: the tensor {name!r} is missing")
        if found[name].shape != tensor.shape:
            raise UserError(
                f"{_where(folder)}: the tensor {name!r} has shape {tuple(found[name].shape)}, "
                f"but the configuration needs {tuple(tensor.shape)}"
            )
    unexpected = sorted(found.keys() - expected.keys())
    if unexpected:
        raise UserError(
            f"{_where(folder)}: the tensor {unexpected[0]!r} of shape "
            f"{tuple(found[unexpected[0]].shape)} belongs to no part of the model"
        )


def _where(folder: Path) -> Path:
    if Path(folder).is_file():
        return Path(folder)
    index_path = Path(folder) / INDEX_FILE
    return index_path if index_path.exists() else Path(folder) / SINGLE_FILE


def load_module(module: torch.nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Check `tensors` against `module` (which may be on the meta device) and assign them."""
    check_tensors(module.state_dict(), tensors, folder)
    module.load_state_dict(tensors, assign=True)


def write_tokenizer(folder: Path, tokenizer) -> None:
    """Write a transformers tokenizer, each of its files atomically."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    staging = temporary_beside(folder / "tokenizer")
    try:
        tokenizer.save_pretrained(staging)
        for path in staging.iterdir():
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def read_tokenizer(folder: str | Path) -> "PreTrainedTokenizerFast":
    """The tokenizer of a folder with a `tokenizer.json`, as every Llama 3 has."""
    from transformers import PreTrainedTokenizerFast  # takes long: see `saved_tokenizer`

    path = check_file(Path(folder) / "tokenizer.json", "the tokenizer of a model folder")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        tokenizer("a")  # settings of another kind show only when it is used
        return tokenizer
    except Exception as error:  # the tokenizers package raises nothing narrower
        raise UserError(f"{path}: not readable as a tokenizer: {in_words(error)}") from error
