"""Which keys of a run something reads, and a value other than the default for each."""

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING
from typing import Any, get_args, get_origin

from metamorph.config import RunConfig
from metamorph.config.options import NAME_LIST, NAMES, NUMBERS, SHARE_OR_PATH
from metamorph.config.reading import iter_fields

# What reads all keys, or those that it refuses, whatever uses them.
OF_ALL_KEYS = ("metamorph/config/", "rules/", "_rules.py", "/data/uses.py", "dataclasses.py")
OTHER_VALUES: dict[Any, tuple] = {
    str: ("other",),
    int: (2, 3),
    float: (0.25, 0.5),
    bool: (True, False),
    NUMBERS: ({"draw": 1.0},),
    NAMES: ({"caption": "text"},),
    NAME_LIST: (["q"],),
    SHARE_OR_PATH: (0.25,),
}


def other_values() -> dict[str, Any]:
    """Of each key of a run that has a default, by its dotted name, another value."""
    found = {}
    for key, kind, default, _ in iter_fields(RunConfig):
        values = get_args(kind) if get_origin(kind) is not None and kind not in OTHER_VALUES else ()
        if default is not MISSING:
            values = values or OTHER_VALUES[kind]
            found[key] = next(value for value in values if value != default)
    return found


@contextmanager
def keys_read(monkeypatch) -> Iterator[set[str]]:
    """The dotted names of the keys that are read while the body runs."""
    sections = {entry.name: entry.type for entry in dataclasses.fields(RunConfig)}
    sections = {name: kind for name, kind in sections.items() if dataclasses.is_dataclass(kind)}
    read: set[str] = set()

    def watch(config_class: type, prefix: str) -> None:
        names = {entry.name for entry in dataclasses.fields(config_class)} - set(sections)

        def get(self, name: str) -> Any:
            if name in names:
                reader = sys._getframe(1).f_code.co_filename
                if not any(part in reader for part in OF_ALL_KEYS):
                    read.add(prefix + name)
            return object.__getattribute__(self, name)

        monkeypatch.setattr(config_class, "__getattribute__", get)

    with monkeypatch.context() as monkeypatch:
        watch(RunConfig, "")
        for name, config_class in sections.items():
            watch(config_class, f"{name}.")
        yield read
