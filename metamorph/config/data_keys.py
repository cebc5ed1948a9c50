"""The keys of a run's data, as in `keys`: where samples come from, and how they are packed."""

from dataclasses import dataclass
from typing import Literal

from metamorph.config.options import (
    FILE_SOURCES,
    GENERATED_SOURCES,
    LANGUAGE_STAGES,
    LINKED_SOURCES,
    NAMES,
    NUMBERS,
    RECORD_SOURCES,
    REMOTE_SOURCES,
    SHARE,
    SHARE_OR_PATH,
    VIDEO_FAMILIES,
    option,
)

Generated = Literal["toy_scenes", "english_scenes"]
FileFormat = Literal["jsonl", "webdataset", "parquet", "pictures", "hf"]
SourceKind = Literal[Generated, FileFormat, "mixture"]
Family = Literal["conversations", "captions", "edits", "boxes", "video_questions", "video_frames"]
TooLong = Literal["skip", "truncate"]
Truncated = Literal["skip", "use"]
MAX_PIXELS = 50_000_000  # of an image
MAX_ROW_LENGTH = 2**20  # eight times the longest context of Llama 3


@dataclass
class SourceConfig:
    """One source of samples: its format, its family and where it lies."""

    source: SourceKind = option("kind of source", "jsonl")
    family: Family = option(
        "what conversation a record stands for, see docs/data.md",
        "conversations",
        **RECORD_SOURCES,
    )
    path: str = option(
        "file of the samples; webdataset and parquet: or a folder, or *.tar; webdataset: or an "
        "address (s3://); pictures: a folder; hf: a data set's name on Hugging Face's Hub, or a "
        "folder",
        "",
        sources=(*FILE_SOURCES["sources"], "mixture"),
    )
    image_root: str = option(
        "folder that image and video paths start from, empty for the folder of the file (jsonl)",
        "",
        sources=("jsonl",),
    )
    fields: NAMES = option(
        "fields of your records under other names: {caption: TEXT}", {}, **RECORD_SOURCES
    )
    subset: str = option(
        "which of the data set's configurations, empty for its only one (hf)", "", sources=("hf",)
    )
    split: str = option("which of its splits, empty for train (hf)", "", sources=("hf",))
    revision: str = option(
        "commit, tag or branch on the Hub; only a commit stays the same (hf)", "", sources=("hf",)
    )
    frames_per_second: float = option(
        "frames to take of a second of video", 1.0, above=0, **VIDEO_FAMILIES
    )
    max_frames: int = option("most frames of a video", 45, minimum=2, **VIDEO_FAMILIES)
    kinds: NUMBERS = option(
        "weight of each sample kind (toy_scenes, english_scenes); two shapes side by side are pair",
        {},
        minimum=0,
        **GENERATED_SOURCES,
    )
    samples: int = option(
        "samples in an epoch, 0 for endless (toy_scenes, english_scenes)",
        0,
        minimum=0,
        **GENERATED_SOURCES,
    )


@dataclass
class PartConfig(SourceConfig):
    """One part of a mixture file; its paths start from the folder of that file."""

    # pyrefly: ignore[bad-override-mutable-attribute]  fewer kinds: nobody sets another one later
    source: Literal[Generated, FileFormat] = option("kind of source", "jsonl")
    weight: float = option("relative share, 0 for the number of samples", 0.0, minimum=0)


@dataclass
class DataConfig(SourceConfig):
    """Where samples come from and how they are packed. A key of all parts of a mixture needs one
    part that uses it."""

    row_length: int = option(
        "tokens in a packed row", 4096, minimum=2, maximum=MAX_ROW_LENGTH, **LANGUAGE_STAGES
    )
    too_long: TooLong = option(
        "a sample longer than a row: skip it, or truncate it, never within an image",
        "skip",
        **LANGUAGE_STAGES,
    )
    max_pixels: int = option(
        "refuse images with more pixels than this", MAX_PIXELS, minimum=1, **FILE_SOURCES
    )
    truncated: Truncated = option(
        "a JPEG that lacks its last bytes: skip its sample, or use it with grey in their place",
        "skip",
        **FILE_SOURCES,
    )
    follow_links: bool = option(
        "read files through links that leave the folder of the data, too", False, **LINKED_SOURCES
    )
    shuffle: bool = option(
        "draw samples in an order that depends on the seed and epoch", True, **FILE_SOURCES
    )
    validation: SHARE_OR_PATH = option(
        "samples to measure losses on and never to train on: a share of the data, such as 0.01; or "
        "a file like data.path, or a mixture file (.yaml)",
        "",
    )
    cache: str = option(
        "folder of local copies of tars whose path is an address, empty for one of the user's",
        "",
        **REMOTE_SOURCES,
    )
    cache_gigabytes: float = option(
        "most that these copies may take together", 100.0, above=0, **REMOTE_SOURCES
    )
    skip_limit: float = option("stop if a larger share of samples is unusable", 0.2, **SHARE)
    features: str = option("folder of cached features, see metamorph encode", "")
    verify_features: bool = option("compare SHA-256 of features and latents first", True)
    workers: int = option("processes that prepare samples ahead, 0 for none", 0, minimum=0)
