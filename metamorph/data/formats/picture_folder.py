"""Records as the pictures below a folder, one each, without a word about them."""

import os
from collections.abc import Iterator
from pathlib import Path

from metamorph.config.data_keys import Truncated
from metamorph.data.formats.records import Folder, Record, natural_order
from metamorph.data.images import reason
from metamorph.data.links import is_clutter
from metamorph.errors import SampleError, UserError

# Those of photographs that cannot be read here are in it too: they become counted skips, where a
# folder half of which is passed over in silence would look complete.
ENDINGS = frozenset(
    "apng avif bmp dib gif heic heif jfif jpe jpeg jpg mpo png tif tiff webp".split()
)


class PictureFolder:
    """Pictures of a folder and of those within it, in the order in which a person would count
    them: `2.jpg` before `10.jpg`. Told from other files by the ending of their names. Only names
    are kept in memory.

    `follow_links`: see `metamorph.data.links.Root`. Raises `UserError` for a folder that cannot be
    read or holds no picture.
    """

    blocks = None

    def __init__(
        self,
        folder: Path,
        max_pixels: int,
        follow_links: bool = False,
        truncated: Truncated = "skip",
    ):
        if not folder.is_dir():
            problem = "is a file" if folder.is_file() else "does not exist"
            raise UserError(f"data.path: {folder} {problem}, expected a folder of pictures")
        self.folder = folder
        self.files = Folder(folder, max_pixels, follow_links, truncated)
        self.names = sorted(self._names(), key=natural_order)
        if not self.names:
            raise UserError(
                f"data.path: {folder} holds no picture, not in folders within it either; "
                f"expected names that end in .jpg, .png, .webp or the like"
            )

    def _names(self) -> Iterator[str]:
        """Of every picture, from the folder on. A folder is entered once, by whatever links."""
        entered = set()
        for place, folders, files in os.walk(self.folder, followlinks=True, onerror=_refuse):
            inside = Path(place).relative_to(self.folder)
            try:
                target = self.files.root.file(str(inside), "folder")
            except SampleError as error:
                raise UserError(f"data.path: {self.folder}: {error}") from error
            if target in entered:
                folders.clear()
                continue
            entered.add(target)
            folders[:] = sorted(name for name in folders if not is_clutter(name))
            for name in files:
                if not is_clutter(name) and os.path.splitext(name)[1][1:].lower() in ENDINGS:
                    yield str(inside / name)

    def __len__(self) -> int:
        return len(self.names)

    def record(self, position: int) -> Record:
        return Record(self.where(position), {"image": self.names[position]}, self.files)

    def where(self, position: int) -> str:
        return str(self.folder / self.names[position])


def _refuse(error: OSError) -> None:
    """A folder that `os.walk` would otherwise pass over."""
    raise UserError(f"data.path: {error.filename} cannot be read: {reason(error)}") from error
