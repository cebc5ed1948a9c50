"""Which files below a folder may be named: no name leads out of it, and links only where the user
says so.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from metamorph.data.images import reason
from metamorph.errors import SampleError, shown


@dataclass(frozen=True)
class Root:
    """A folder that the user named. `follow_links`: the setting `data.follow_links`.

    Links within the folder are always followed, and so are those of a Hugging Face snapshot to
    the blobs beside it: `hub/models--x/snapshots/rev/a.png` -> `hub/models--x/blobs/5f2a`.
    """

    folder: Path
    follow_links: bool = False
    way_out: str = "data.follow_links: true"  # what would allow a link that leaves the folder

    @cached_property
    def resolved(self) -> Path:
        return self.folder.resolve()

    @cached_property
    def blobs(self) -> Path | None:
        """Where the files of the snapshot lie that the folder belongs to, if it does."""
        for folder in (self.resolved, *self.resolved.parents):
            if folder.parent.name == "snapshots":
                return folder.parent.parent / "blobs"
        return None

    def file(self, name: str, kind: str = "image") -> Path:
        """The path of `name` below the folder, links followed. It need not exist.

        Raises `SampleError` if it leaves the folder. A `..` is taken by its text, before any
        link: it leads out of the folder under no setting.
        """
        base = Path(os.path.abspath(self.folder))
        written = Path(os.path.normpath(base / name))
        try:
            path, root = written.resolve(), self.resolved
        except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, links in a circle
            message = f"{kind} path {shown(name)} cannot be followed: {reason(error)}"
            raise SampleError(f"missing {kind}", message) from error
        if path.is_relative_to(root):
            return path
        leaves, cause = f"{kind} path {shown(name)}", "image outside its root"
        if not written.is_relative_to(base):
            raise SampleError(cause, f"{leaves} leaves its root {self.folder}")
        if self.follow_links or (self.blobs is not None and path.is_relative_to(self.blobs)):
            return path
        raise SampleError(
            cause,
            f"{leaves} is a link that leaves its root {self.folder}; {self.way_out} would allow it",
        )


def is_clutter(name: str) -> bool:
    """Whether a file is not the user's but a desktop's: `._a.png`, `.DS_Store`, `Thumbs.db`."""
    hidden = name.startswith(".") and name not in (".", "..")
    return hidden or name in ("__MACOSX", "Thumbs.db", "desktop.ini")
