import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import metamorph_kernels
from metamorph_kernels import backends, reference

ROOT = Path(metamorph_kernels.__file__).parent.parent

IMPORT_ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("transformers", "diffusers", "triton"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
import torch
import metamorph_kernels
attention = metamorph_kernels.interval_attention
q = torch.ones(3, 1, 2)
assert attention(q, q, q, metamorph_kernels.key_intervals([1, 2])).eq(1).all()
"""


def test_imports_and_runs_with_torch_alone():
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALONE], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_every_public_name_exists_and_every_op_is_listed():
    for name in metamorph_kernels.__all__:
        assert hasattr(metamorph_kernels, name)
    for operation in backends.IMPLEMENTED:
        assert operation in metamorph_kernels.__all__
        assert hasattr(reference, operation)


def test_auto_and_torch_mean_the_same():
    x = torch.randn(3, 4)
    auto, explicit = (
        metamorph_kernels.cosine_loss(x, x.roll(1), impl=impl) for impl in ("auto", "torch")
    )
    assert torch.equal(auto, explicit)


@pytest.mark.parametrize("operation", list(backends.IMPLEMENTED))
@pytest.mark.parametrize("impl", ["triton", "cuda", "numpy", None])
def test_asking_for_what_is_absent_names_what_exists(operation, impl):
    with pytest.raises(ValueError, match=f"{operation} takes 'auto', 'torch', got {impl!r}"):
        backends.resolve(operation, impl)


def test_probe_reports_every_op_and_why_a_backend_is_absent():
    report = metamorph_kernels.probe()
    assert list(report) == list(backends.IMPLEMENTED)
    for operation, states in report.items():
        assert states["torch"] == "available"
        for backend in ("triton", "cuda"):
            assert states[backend].startswith("absent: ") and operation in states[backend]
