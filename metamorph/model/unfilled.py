"""Modules that are built only to be filled from files."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode


class _NoFilling(TorchFunctionMode):
    """Leaves tensors as they are where `torch.nn.init` would fill them."""

    def __torch_function__(self, func, types, args: tuple = (), kwargs: dict | None = None):
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == torch.nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@contextmanager
def unfilled() -> Generator[None]:
    """Modules made within have parameters on the meta device: shapes and dtypes, no values.

    `torch.device("meta")` alone would go through the motions of filling them, for which PyTorch
    imports all of torch.compile.
    """
    with torch.device("meta"), _NoFilling():
        yield
