"""Kernels in Gluon as Python that the emulator runs: their sources, unchanged or mutated."""

import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

from tests.kernels.emulator import hopper, language

GLUON = "triton.experimental.gluon"


def emulated(modules: Sequence[str], mutations: Sequence[tuple[str, str]] = ()) -> ModuleType:
    """The last of these modules of kernels, run on the emulator; the others are imported by it.

    Each of `mutations` is a text that all their sources have once, and what stands in its place.
    """
    sources = {name: _source(name) for name in modules}
    for old, new in mutations:
        holders = [name for name, source in sources.items() if old in source]
        assert len(holders) == 1 and sources[holders[0]].count(old) == 1, f"{old!r}: {holders}"
        sources[holders[0]] = sources[holders[0]].replace(old, new)
    with patch.dict(sys.modules, _stand_ins()):
        for name, source in sources.items():
            module = sys.modules[name] = ModuleType(name)
            exec(compile(source, f"<{name}, emulated>", "exec"), vars(module))
    return module


def _source(name: str) -> str:
    spec = find_spec(name)
    assert spec is not None and spec.origin is not None, f"there is no module {name}"
    return Path(spec.origin).read_text()


def _stand_ins() -> Mapping[str, ModuleType]:
    """What kernels import of Gluon: `jit` leaves a function as it is."""
    gluon = ModuleType(GLUON)
    gluon.jit = lambda function=None, **_: function or (lambda decorated: decorated)
    gluon.language = language
    experimental = ModuleType("triton.experimental")
    experimental.gluon = gluon
    return {
        "triton.experimental": experimental,
        GLUON: gluon,
        f"{GLUON}.language": language,
        f"{GLUON}.language.nvidia": ModuleType("nvidia"),
        f"{GLUON}.language.nvidia.hopper": hopper,
    }
