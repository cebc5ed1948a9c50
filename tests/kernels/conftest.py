"""The Triton tests run on a GPU, or in Triton's interpreter, which must be chosen at import time.

They need torch, triton and pytest alone, so that a bare GPU machine can run them.
"""

import inspect
import os
from functools import cache
from types import SimpleNamespace

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED or torch.cuda.is_available() else ["*/test_triton_*.py"]

if INTERPRETED:
    from triton.runtime import interpreter

    @cache
    def _names(package) -> list[str]:
        """Of the operations that a part of Triton's language has, while none is replaced yet."""
        is_builtin = interpreter.tl.core.is_builtin
        return [name for name, member in inspect.getmembers(package) if is_builtin(member)]

    def _builtins(package) -> list[tuple]:
        return [(name, getattr(package, name)) for name in _names(package)]

    # It looks for them at each call of each function, which was a quarter of the time of the tests.
    interpreter.inspect = SimpleNamespace(**vars(inspect) | {"getmembers": _builtins})


@pytest.fixture
def device():
    return "cpu" if INTERPRETED else "cuda"


@pytest.fixture
def poisoned():
    """Memory that PyTorch leaves uninitialised holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # its default also fills memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def exact_float8(monkeypatch):
    """Triton's interpreter loses the carry when float8 rounds up to the next power of two.

    And the NaN of float8_e4m3fn becomes 480 when it is read.
    """
    if not INTERPRETED:
        return
    from triton.runtime import interpreter

    tl, convert = interpreter.tl, interpreter._convert_float
    float8 = {tl.float8e4nv: torch.float8_e4m3fn, tl.float8e5: torch.float8_e5m2}
    wider = {tl.float16: torch.float16, tl.float32: torch.float32}

    def convert_exactly(data, source, target, rounding):
        if target in float8:
            return torch.from_numpy(data).to(float8[target]).view(torch.uint8).numpy()
        if source in float8:
            return torch.from_numpy(data).view(float8[source]).to(wider[target]).numpy()
        return convert(data, source, target, rounding)

    monkeypatch.setattr(interpreter, "_convert_float", convert_exactly)


@pytest.fixture(params=["drops NaN", "keeps NaN"] if INTERPRETED else ["as the GPU has it"])
def either_maximum(request, monkeypatch):
    """Both meanings of a maximum with NaN.

    A GPU's drops NaN; the interpreter's drops it in a reduction and keeps it between two tensors.
    """
    if not INTERPRETED:
        return
    import numpy
    from triton.runtime import interpreter

    keeps = request.param == "keeps NaN"
    pairwise = {
        "create_maxnumf": numpy.maximum if keeps else numpy.fmax,
        "create_minnumf": numpy.minimum if keeps else numpy.fmin,
    }
    for name, function in pairwise.items():
        method = lambda self, a, b, f=function: self.binary_op(a, b, f)  # noqa: E731
        monkeypatch.setattr(interpreter.InterpreterBuilder, name, method)
    if keeps:
        monkeypatch.setattr(interpreter.np, "nanmax", numpy.max)
        monkeypatch.setattr(interpreter.np, "nanmin", numpy.min)
