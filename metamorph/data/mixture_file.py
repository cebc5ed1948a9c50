"""A file that names the parts of a mixture, as `metamorph.data.opening` shows one."""

from pathlib import Path

from metamorph.config import PartConfig
from metamorph.config.reading import read_section
from metamorph.config.strict_yaml import read_yaml
from metamorph.data.mixture import PERIOD
from metamorph.errors import UserError, shown

ENDINGS = (".yaml", ".yml")
LONGEST_NAME = 100  # of a part, which stands before each line about it


def read_mixture(path: Path) -> dict[str, PartConfig]:
    """The parts of a mixture file. Raises `UserError` if it is no such file."""
    written = read_yaml(path)
    if not isinstance(written, dict) or not written:
        raise UserError(f"{path}: expected the parts of a mixture, each a name with its settings")
    if len(written) > PERIOD // 10:
        raise UserError(f"{path}: {len(written)} parts are too many, at most {PERIOD // 10} fit")
    for name in map(str, written):
        if len(name) > LONGEST_NAME or not name.isprintable():
            problem = f"expected at most {LONGEST_NAME} characters that can be printed"
            raise UserError(f"{path}: {shown(name)} cannot be the name of a part, {problem}")
    return {
        str(name): read_section(PartConfig, values, f"{path}: part '{name}'")
        for name, values in written.items()
    }
