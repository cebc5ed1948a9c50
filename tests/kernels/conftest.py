"""The Triton tests run on a GPU, or in Triton's interpreter, which must be chosen at import time.

They need torch, triton and pytest alone, so that a bare GPU machine can run them.
"""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED or torch.cuda.is_available() else ["test_triton_*.py"]


@pytest.fixture
def device():
    return "cpu" if INTERPRETED else "cuda"


@pytest.fixture
def poisoned():
    """Memory that PyTorch leaves uninitialised holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # its default also fills memory
    yield
    torch.use_deterministic_algorithms(False)
