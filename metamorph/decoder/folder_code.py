"""The code that a decoder's folder brings along, so that diffusers opens it without `metamorph`.

This file needs Python alone, for it goes along too.
"""

import inspect
from pathlib import Path
from typing import Any


def write_files(folder: Path, code: dict[str, Any]) -> None:
    """Writes the files in which these classes or functions stand, by their names in the folder.

    What they import of `metamorph.decoder` they find beside them there, as diffusers wants it: the
    pipeline is `pipeline.py`, and a part's code has the name by which model_index.json calls it.
    """
    for name, thing in {**code, "folder_code.py": write_files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        source = Path(inspect.getfile(thing)).read_text()
        path.write_text(source.replace("from metamorph.decoder.", "from ."))
