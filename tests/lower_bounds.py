"""Print each direct dependency, its lower bound in pyproject.toml, and the version that is here.

    python -m tests.lower_bounds

For an environment of `make lower-bounds`. Exits with 1 where a version is not the bound: the
bound cannot be had together with the others, so it is not true. Only torch may be newer, for its
oldest release has no wheel for CPUs on PyPI.
"""

import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent


def requirements(file: Path, extras: tuple[str, ...]) -> list[Requirement]:
    """Of a pyproject.toml: what it always needs, and what these extras need."""
    project = tomllib.loads(file.read_text())["project"]
    optional = project["optional-dependencies"]
    names = [*project["dependencies"], *(name for extra in extras for name in optional[extra])]
    return [Requirement(name) for name in names]


def bounds() -> dict[str, Version]:
    """The lower bound of each package that `make lower-bounds` installs for `.[test]`."""
    declared = requirements(ROOT / "pyproject.toml", ("test",))
    declared += requirements(ROOT / "kernels/pyproject.toml", ())
    found: dict[str, Version] = {}
    for requirement in declared:
        [bound] = requirement.specifier
        lowest = Version(bound.version)
        found[requirement.name] = max(lowest, found.get(requirement.name, lowest))
    return found


def untrue(versions: dict[str, Version]) -> list[str]:
    """The packages of these versions that are not at their bounds."""
    return [
        name
        for name, bound in bounds().items()
        if (versions[name] < bound if name == "torch" else versions[name] != bound)
    ]


def main() -> int:
    versions = {name: Version(version(name)) for name in bounds()}
    for name, bound in sorted(bounds().items()):
        print(f"{name:20} >= {bound!s:10} here {versions[name]}")
    missed = untrue(versions)
    if missed:
        print(f"not at the lower bound: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
