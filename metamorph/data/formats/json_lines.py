"""Records as JSON objects, one a line or together in one array, with images and videos below a
folder.
"""

from collections.abc import Mapping
from pathlib import Path

from metamorph.config.data_keys import Truncated
from metamorph.data.formats.compression import compression_of
from metamorph.data.formats.places import Places, elements, lines
from metamorph.data.formats.records import Folder, Record
from metamorph.data.formats.text import LONGEST_RECORD, read_object
from metamorph.data.images import reason
from metamorph.errors import SampleError, UserError

MARK = b"\xef\xbb\xbf"  # the byte order mark of UTF-8
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
BEGINNING = 2**16  # bytes that tell what a file is


class JsonLines:
    """A JSONL file, or LLaVA's one JSON array. Only places are kept in memory, 24 bytes a record;
    a record is parsed when its turn comes."""

    blocks = None

    def __init__(
        self,
        path: Path,
        image_root: Path,
        max_pixels: int,
        names: Mapping[str, str],
        follow_links: bool = False,
        truncated: Truncated = "skip",
    ):
        if not image_root.is_dir():
            problem = "is a file" if image_root.is_file() else "does not exist"
            raise UserError(
                f"data.image_root: {image_root} {problem}, expected the folder of the images"
            )
        self.path, self.names = path, names
        self.files = Folder(image_root, max_pixels, follow_links, truncated)
        self.places, self.is_array = _read_places(path)
        if not len(self.places):
            raise UserError(f"data.path: {path} holds no samples")

    def __len__(self) -> int:
        return len(self.places)

    def record(self, position: int) -> Record:
        start, end = int(self.places.starts[position]), int(self.places.ends[position])
        if self.places.is_cut and position == len(self) - 1:
            raise SampleError("cut off file", "the file ends within its array, the rest is lost")
        if end - start > LONGEST_RECORD:
            raise ValueError(f"it is longer than {LONGEST_RECORD // 2**20} MiB")
        with self.path.open("rb") as file:
            file.seek(start)
            content = file.read(end - start)
        what = "the element" if self.is_array else "the line"
        return Record(self.where(position), read_object(content, what), self.files, self.names)

    def where(self, position: int) -> str:
        number = self.places.numbers[position]
        return f"{self.path}[{number}]" if self.is_array else f"{self.path}:{number}"


def _read_places(path: Path) -> tuple[Places, bool]:
    """Where the records stand, and whether in an array. Raises `UserError` for another file."""
    try:
        if path.is_dir():
            raise UserError(f"data.path: {path} is a folder, expected a JSONL file")
        with path.open("rb") as file:
            beginning = file.read(BEGINNING)
        content = beginning.removeprefix(MARK).lstrip()
        problem = compression_of(beginning)
        if not problem and (beginning[:2] in UTF_16_MARKS or b"\0" in beginning[:4]):
            problem = "it is UTF-16 or UTF-32, save it as UTF-8"
        elif content.partition(b"\n")[0].strip() == b"{":
            problem = "it holds an object of several lines, expected one a line or an array of them"
        if problem:
            raise UserError(f"data.path: {path} cannot be read: {problem}")
        is_array = content.startswith(b"[")
        start = len(MARK) if beginning.startswith(MARK) else 0
        return (elements if is_array else lines)(path, start), is_array
    except FileNotFoundError as error:
        raise UserError(f"data.path: {path} does not exist, expected a JSONL file") from error
    except (OSError, ValueError) as error:
        raise UserError(f"data.path: {path} cannot be read: {reason(error)}") from error
