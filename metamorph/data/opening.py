"""The source that a run's `data` section names: generated, of files, or a mixture of several.

A mixture is a YAML file that names its parts:

    image_qa:
      weight: 0.6
      path: qa/data.jsonl
    generation:
      weight: 0.4
      source: webdataset
      family: captions
      path: pairs/
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from metamorph.config import DataConfig, SourceConfig
from metamorph.data.conversation import Sample
from metamorph.data.families.boxes import boxes
from metamorph.data.families.pictures import captions, conversations, edits, pictures
from metamorph.data.families.videos import Sampling, video_frames, video_questions
from metamorph.data.formats.hugging_face import HuggingFace
from metamorph.data.formats.json_lines import JsonLines
from metamorph.data.formats.parquet import Parquet
from metamorph.data.formats.picture_folder import PictureFolder
from metamorph.data.formats.records import Record, Records
from metamorph.data.formats.web_dataset import WebDataset
from metamorph.data.holdout import Portion, RecordsAt, SamplesAt, positions
from metamorph.data.mixture import Mixture, parts_of
from metamorph.data.mixture_file import read_mixture
from metamorph.data.order import mixed
from metamorph.data.remote.addresses import is_address
from metamorph.data.remote.shards import open_shards
from metamorph.data.sources import RecordSource, Source
from metamorph.data.toy.english.wording import English
from metamorph.data.toy.source import ToyScenes
from metamorph.data.toy.wording import PLAIN, Wording
from metamorph.data.uses import check_part, source_of_validation
from metamorph.errors import UserError
from metamorph.folders import check_data_set

GENERATED: dict[str, Wording] = {"toy_scenes": PLAIN, "english_scenes": English()}


def open_source(
    config: DataConfig, seed: int, words: bool = True, portion: Portion = "all"
) -> Source:
    """The source that a run's `data` section names. Raises `UserError` if it cannot be used.

    `words`: whether samples need any. Without, as for the decoder, pictures alone suffice: records
    may lack their text, and a source may be a folder of pictures. `portion`: with a share as
    `data.validation`, of each part what is held out, or what is left to train on.
    """
    if config.source == "mixture":
        check_part(config)
        return open_mixture(config, seed, words, portion)
    return open_part(config, config, Path(), seed, words, portion)


def open_validation(config: DataConfig, seed: int, words: bool = True) -> Source:
    """The samples that `data.validation` stands for: a share of the data, or a file of their own.
    They are shuffled in any case: who looks at the first of them sees some of all. `words`: see
    `open_source`.

    Raises `UserError` if they cannot be used.
    """
    name, config = config.validation, replace(config, shuffle=True)
    if isinstance(name, float):
        return open_source(config, seed, words, portion="validation")
    config = replace(config, **vars(source_of_validation(config, name)))
    try:
        return open_source(replace(config, validation=""), seed, words)
    except UserError as error:
        problem = str(error).removeprefix("data.path: ")  # it is not that path
        raise UserError(f"data.validation: {problem}") from error


def open_parts(config: DataConfig, seed: int, words: bool = True) -> dict[str, Source]:
    """Each part of the data, and of a file that is `data.validation`, by name."""
    parts = dict(parts_of(open_source(config, seed, words)))
    if isinstance(config.validation, str) and config.validation:
        own = parts_of(open_validation(config, seed, words))
        parts |= {f"data.validation, {name}": part for name, part in own.items()}
    return parts


def check_path(config: SourceConfig) -> None:
    """Raises `UserError` if a source that reads files names none."""
    if config.source in GENERATED or config.path:
        return
    what = "the file or folder of the samples"
    if config.source == "hf":
        what = "a name on Hugging Face's Hub or a folder"
    if config.source == "mixture":
        what = "a YAML file that names the parts"
    elif config.source == "pictures":
        what = "a folder of pictures"
    raise UserError(f"data.path: it is empty, expected {what}")


def open_part(
    config: SourceConfig, data: DataConfig, base: Path, seed: int, words: bool, portion: Portion
) -> Source:
    """One source that is no mixture; relative paths start from `base`. `data`: the section that
    it stands in, whose settings hold for all parts. `words` and `portion`: see `open_source`."""
    share = data.validation if isinstance(data.validation, float) and portion != "all" else None
    check_part(config)
    if config.source in GENERATED:
        scenes = ToyScenes(seed, config.kinds, config.samples, GENERATED[config.source])
        return SamplesAt(scenes, positions(len(scenes), share, portion)) if share else scenes
    if config.source == "pictures" and words:
        raise UserError(
            f"data.source: pictures ({config.path}) come without a word about them, only stage "
            f"decoder learns from that; expected jsonl, webdataset or parquet"
        )
    records = open_records(config, data, base)
    if share:
        records = RecordsAt(records, positions(len(records), share, portion))
    return RecordSource(records, family_of(config, seed, words), seed, data.shuffle)


def family_of(config: SourceConfig, seed: int, words: bool = True) -> Callable[[Record], Sample]:
    """What makes a sample of a record of `config.family`. `words`: see `open_source`."""
    sampling = Sampling(config.frames_per_second, config.max_frames)
    families = {
        "conversations": conversations,
        "captions": captions,
        "edits": edits,
        "boxes": partial(boxes, seed=seed),
        "video_questions": partial(video_questions, sampling=sampling),
        "video_frames": partial(video_frames, sampling=sampling, seed=seed),
    }
    if not words:
        alone = partial(pictures, fields=("image",))
        families |= {"conversations": alone, "captions": alone}
        families["edits"] = partial(pictures, fields=("original_image", "edited_image"))
    return families[config.family]


def open_records(config: SourceConfig, data: DataConfig, base: Path) -> Records:
    """The records of files, whatever they stand for; `data` and `base` as for `open_part`.

    Raises `UserError` for files that cannot be used.
    """
    check_path(config)
    check_addresses(config)
    if is_address(config.path):
        shards = open_shards(config.path, data)
        return WebDataset(shards, data.max_pixels, config.fields, truncated=data.truncated)
    path = base / config.path
    if config.source == "hf":
        return HuggingFace(path, config, data.max_pixels, data.truncated)
    check_data_set(path, "data.path")
    how: dict[str, Any] = {"follow_links": data.follow_links, "truncated": data.truncated}
    if config.source == "jsonl":
        image_root = base / config.image_root if config.image_root else path.parent
        check_data_set(image_root, "data.image_root")
        return JsonLines(path, image_root, data.max_pixels, config.fields, **how)
    if config.source == "pictures":
        return PictureFolder(path, data.max_pixels, **how)
    opened = WebDataset if config.source == "webdataset" else Parquet
    return opened(path, data.max_pixels, config.fields, **how)


def check_addresses(config: SourceConfig) -> None:
    """Raises `UserError` for an address where only files are read."""
    for key in ("path", "image_root"):
        address = getattr(config, key)
        if is_address(address) and (key, config.source) != ("path", "webdataset"):
            raise UserError(
                f"data.{key}: {address} is an address, which only the path of source webdataset "
                f"may be; fetch it and give the path here"
            )


def endless_parts(config: DataConfig) -> list[str]:
    """The parts that have no last sample: generated ones where nobody says how many there are."""
    parts: dict[str, SourceConfig] = {f"data.source {config.source}": config}
    if config.source == "mixture" and Path(config.path).is_file():
        mixture = read_mixture(Path(config.path))
        parts = {f"{config.path}: part '{name}'": part for name, part in mixture.items()}
    return [n for n, part in parts.items() if part.source in GENERATED and not part.samples]


def open_mixture(config: DataConfig, seed: int, words: bool, portion: Portion) -> Mixture:
    """The mixture file `data.path`. Without a weight, a part counts by its number of samples.
    `words` and `portion`: see `open_source`.

    Raises `UserError` if the file or one of its parts cannot be used.
    """
    check_path(config)
    path = Path(config.path)
    parts, weights = {}, []
    for number, (name, part) in enumerate(read_mixture(path).items()):
        try:
            # Equal files under other names should not come in the same order.
            part_seed = mixed(seed, number) % 2**32
            parts[name] = open_part(part, config, path.parent, part_seed, words, portion)
        except UserError as error:
            raise UserError(f"{path}: part '{name}': {error}") from error
        weights.append(part.weight or len(parts[name]))
    return Mixture(parts, weights, seed)
