"""The run files that come with the package: the folder `configs` of the repository."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def configs_folder() -> Path:
    """Inside an installed package; beside it in a clone, from which it is installed editable."""
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


def find_config(path: str | Path) -> Path:
    """`path` if it is there, else the shipped file of that name, such as configs/toy/align.yaml.

    Where neither is, `path` itself: whoever reads it says so.
    """
    path = Path(path)
    if path.exists() or not path.parts or path.parts[0] != "configs":
        return path
    shipped = configs_folder().joinpath(*path.parts[1:])
    return shipped if shipped.exists() else path
