"""Loads a library of ops that was compiled from csrc/, or says why there is none."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def load_library(
    path: Path, variable: str, namespace: str, fakes: Mapping[str, Callable]
) -> str | None:
    """Registers the ops of the library at `path` and their fake versions, by name within the
    `namespace`; why that failed, or None.

    `variable` is what one sets to 1 to learn what its build lacks, see kernels/setup.py.
    """
    if not path.exists():
        return f"not built; install with {variable}=1 to build it or to learn what is missing"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        [reason, *_] = str(error.__cause__ or error).splitlines()
        return f"torch {torch.__version__} cannot load it: {reason}"
    ops = getattr(torch.ops, namespace)
    for name in fakes:
        if not hasattr(ops, name):
            return f"built of older sources, which lack {name}; build it again"
    for name, fake in fakes.items():
        torch.library.register_fake(f"{namespace}::{name}", fake)
    return None
