"""Pictures that a decoder was not trained on: scenes of the toy world, or files of the user."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

from PIL import Image

from metamorph.config import DataConfig
from metamorph.config.data_keys import FileFormat
from metamorph.data.conversation import Sample
from metamorph.data.images import opened
from metamorph.data.opening import open_source
from metamorph.data.skips import Skips, located, skippable
from metamorph.data.sources import Source
from metamorph.data.toy.scenes import Scene, caption
from metamorph.errors import SampleError, UserError
from metamorph.evaluation.toy_tasks import caption_tasks
from metamorph.pixels import middle_square

FORMATS: dict[str, FileFormat] = {  # by the ending of a name; a folder is one of pictures
    ".json": "jsonl", ".jsonl": "jsonl", ".tar": "webdataset", ".parquet": "parquet",
}  # fmt: skip
Fit = Literal["squash", "crop"]
REQUEST = "Generate an image of "  # how training asks for a picture of a caption


@dataclass(frozen=True)
class HeldOutPicture:
    """A picture in RGB, what it shows in words, and the scene itself where it is of the toy world.

    `number` counts from 0. `caption` is empty where nothing is said of the picture.
    """

    number: int
    picture: Image.Image
    caption: str = ""
    scene: Scene | None = None

    @property
    def cluster(self) -> str:
        """Pictures of one combination of the toy world are not independent; others are."""
        return str(self.number) if self.scene is None else self.scene.combination

    @property
    def request(self) -> str:
        """What a model is asked for to predict its features."""
        return f"{REQUEST}{self.caption}."


class HeldOutPictures(Protocol):
    """The same pictures in the same order, each time anew. `skips` are those of the last time."""

    name: str
    skips: Skips

    def __iter__(self) -> Iterator[HeldOutPicture]: ...


@dataclass
class ToyPictures:
    """Scenes of one shape in combinations that training never shows, `count` of them."""

    count: int
    name: str = "held-out toy scenes"
    skips: Skips = field(default_factory=Skips)

    def __iter__(self) -> Iterator[HeldOutPicture]:
        self.skips = Skips()
        for number, task in enumerate(caption_tasks(self.count)):
            self.skips.tried += 1
            picture = opened(task.sample.images[-1])
            yield HeldOutPicture(number, picture, caption(task.scene), task.scene)


@dataclass
class SourcePictures:
    """The first `count` pictures of a source, of one epoch at most. Samples that cannot be used
    are skipped and counted. `fit` crop: of each the square in its middle."""

    source: Source
    count: int
    name: str
    fit: Fit = "squash"
    skips: Skips = field(default_factory=Skips)

    def __iter__(self) -> Iterator[HeldOutPicture]:
        self.skips = Skips()
        given = 0
        for index in range(len(self.source)):
            self.skips.tried += 1
            try:
                with skippable(f"sample {index}"):
                    sample = self.source.sample(index)
                with located(sample.where or f"sample {sample.id}"):
                    pictures = [opened(image) for image in sample.images]
            except SampleError as error:
                self.skips.add(error)
                continue
            for picture in pictures:
                if given == self.count:
                    return
                if self.fit == "crop":
                    picture = middle_square(picture)
                yield HeldOutPicture(given, picture, _caption(sample))
                given += 1


def _caption(sample: Sample) -> str:
    """What the family `captions` put into the request."""
    if not sample.turns:
        return ""
    return sample.turns[0].text.removeprefix(REQUEST).removesuffix(".")


def open_pictures(
    path: Path | None,
    count: int,
    seed: int,
    *,
    words: bool = False,
    image_root: Path | None = None,
    fit: Fit = "squash",
) -> HeldOutPictures:
    """Toy scenes for no path; the pictures of a folder; or those of records that have `image` and,
    with `words`, `caption`: JSON lines, a tar or parquet file. `seed` decides which come first,
    `fit` how files become squares, as `decoder.fit` of the run that trained the decoder.

    Raises `UserError` for a path that is missing, empty or of another kind.
    """
    if path is None:
        if image_root is not None:
            raise UserError("--image-root goes with --data only")
        if fit != "squash":
            raise UserError("--fit goes with --data only: toy scenes are squares")
        return ToyPictures(count)
    kind: FileFormat | None = "pictures" if path.is_dir() else FORMATS.get(path.suffix.lower())
    if kind is None:
        raise UserError(
            f"--data: {path} does not exist, expected a folder of pictures"
            if not path.exists()
            else f"--data: {path} is no folder of pictures, nor one of {', '.join(FORMATS)}"
        )
    if image_root is not None and kind != "jsonl":
        raise UserError(f"--image-root goes with JSON lines only, --data is {path}")
    if words and kind == "pictures":
        raise UserError(
            f"--data: the pictures of {path} come without a word about them, and --model and "
            f"--clip go by captions; expected a file of records with image and caption"
        )
    config = DataConfig(
        source=kind,
        path=str(path),
        family="captions" if kind != "pictures" else "conversations",
        image_root="" if image_root is None else str(image_root),
    )
    try:
        source = open_source(config, seed, words=words)
    except UserError as error:
        message = str(error)
        for key, option in (("data.path", "--data"), ("data.image_root", "--image-root")):
            message = message.replace(f"{key}:", f"{option}:")
        raise UserError(message) from error
    return SourcePictures(source, count, str(path), fit)


def in_batches(pictures: Iterable[HeldOutPicture], size: int) -> Iterator[list[HeldOutPicture]]:
    """All of them, `size` at a time."""
    following = iter(pictures)
    while batch := [*islice(following, size)]:
        yield batch
