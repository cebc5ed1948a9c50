"""Who takes part in a comparison, ours and peers, and why one may be absent."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Generic, TypeVar

import torch
from torch import Tensor

from metamorph_kernels import backends

Absence = Callable[[torch.device], str | None]  # why something cannot run there, or None
Compute = Callable[..., Tensor]
Method = TypeVar("Method")


def never(device: torch.device) -> None:
    """The absence of what runs everywhere."""


def unless_on_gpu(reason: str) -> Absence:
    """The absence of what runs on a GPU only."""
    return lambda device: None if device.type == "cuda" else reason


@dataclass(frozen=True)
class Provider(Generic[Method]):
    """A name in the tables and its method: a function for an op, the settings of a whole run.

    `absence(device)` says why it cannot run there, or None.
    """

    name: str
    method: Method
    absence: Absence = never

    def adapted(self, adapt: Callable[[Method], Method]) -> "Provider[Method]":
        """The same one, by what `adapt` makes of its method."""
        return replace(self, method=adapt(self.method))


def backend_absence(function: Compute, backend: str) -> Absence:
    """That of a backend of one of our ops."""
    return lambda device: backends.absence(function.__name__, backend, device.type)


def ours(function: Compute, *names: str) -> list[Provider[Compute]]:
    """These backends of one of our ops."""
    return [
        Provider(f"ours {name}", partial(function, impl=name), backend_absence(function, name))
        for name in names
    ]


# When first called, which no import should wait for; each shape by itself, as a peer would run it.
_compile = cache(partial(torch.compile, dynamic=False))
# On a CPU, which only rehearses, compiling would take most of the time.
compiler_absence = unless_on_gpu("compiled on a GPU only")


def compiled(function: Compute) -> Provider[Compute]:
    """`torch.compile` of plain PyTorch."""
    return Provider(
        "torch.compile",
        lambda *tensors, **options: _compile(function)(*tensors, **options),
        compiler_absence,
    )


def gpu_package(module: str, name: str | None = None) -> Absence:
    """A probe: is this a GPU, and can `module`, or `name` of it, be imported?"""

    def absence(device: torch.device) -> str | None:
        if device.type != "cuda":
            return "needs a GPU"
        try:
            imported = importlib.import_module(module)
            if name is not None:  # one package may be no more than the folder that holds another
                getattr(imported, name)
        except Exception as error:  # a package built for another torch fails in its own ways
            top = module.partition(".")[0]
            if importlib.util.find_spec(top) is None:
                return "not installed"
            return f"{type(error).__name__}: {error}"
        return None

    return absence
