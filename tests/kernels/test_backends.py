import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import metamorph_kernels
from metamorph_kernels import absence, backends, reference

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
torch.testing.assert_close(attention(q, q, q, metamorph_kernels.key_intervals([1, 2])), q)
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
@pytest.mark.parametrize("impl", ["cuda", "numpy", None])
def test_asking_for_what_does_not_exist_names_what_does(operation, impl):
    known = backends.implementations(operation)
    if impl in known:
        return
    present = ", ".join(repr(name) for name in ("auto", *known))
    with pytest.raises(ValueError, match=f"{operation} takes {present}, got {impl!r}"):
        backends.resolve(operation, impl, torch.ones(1))


WITH_TRITON = [name for name, impls in backends.IMPLEMENTED.items() if "triton" in impls]


@pytest.mark.parametrize("operation", WITH_TRITON)
def test_asking_for_triton_where_it_cannot_run_says_why(operation, monkeypatch):
    resolve, x = backends.resolve, torch.ones(1)
    with pytest.raises(ValueError, match="CPU tensors need TRITON_INTERPRET=1"):
        resolve(operation, "triton", x)
    with pytest.raises(ValueError, match="no kernels for meta devices"):
        resolve(operation, "triton", x.to("meta"))
    monkeypatch.setattr(backends, "triton_absence", lambda device_type, needs: None)
    assert resolve(operation, "triton", x) == "triton"
    with pytest.raises(ValueError, match=f"{operation} cannot run in Triton here: a limit"):
        resolve(operation, "triton", x, "a limit")


@pytest.mark.parametrize("operation", ["cosine_loss", "linear_cosine_loss", "pool_normalize"])
def test_asking_for_cuda_where_it_cannot_run_says_why(operation, monkeypatch):
    resolve, x = backends.resolve, torch.ones(1)
    monkeypatch.setattr(backends, "cuda_absence", {"cpu": "not built"}.get)
    with pytest.raises(ValueError, match=f"{operation} cannot run in CUDA C\\+\\+ here: not built"):
        resolve(operation, "cuda", x)
    assert resolve(operation, "cuda", x.to("meta")) == "cuda"
    with pytest.raises(ValueError, match="here: a limit"):
        resolve(operation, "cuda", x.to("meta"), None, "a limit")


def test_gluon_is_there_for_those_who_ask_for_it(monkeypatch):
    resolve, x = backends.resolve, torch.ones(1)
    with pytest.raises(ValueError, match="cannot run in Gluon here: Gluon kernels run on a GPU"):
        resolve("interval_attention", "gluon", x)
    with pytest.raises(
        ValueError, match="prefill_attention takes 'auto', 'triton', 'cpp', 'torch', got"
    ):
        resolve("prefill_attention", "gluon", x)
    for name in ("triton_absence", "gluon_absence"):
        monkeypatch.setattr(backends, name, lambda *_: None)
    assert resolve("interval_attention", "auto", OnGpu) == "triton"
    assert resolve("interval_attention", "gluon", OnGpu) == "gluon"
    with pytest.raises(ValueError, match="cannot run in Gluon here: a limit"):
        resolve("interval_attention", "gluon", OnGpu, gluon_limit="a limit")


def test_limits_of_kernels_of_whole_rows():
    def limits(*tensors):
        return list(backends.row_limits(*tensors).values())

    rows, double = torch.ones(2, 3), torch.ones(2, 3).double()
    assert limits(rows) == limits(rows, rows.half()) == [None, None]
    assert limits(double, rows) == ["float64 runs in PyTorch only"] * 2
    assert limits(rows, double) == [None, "float64 runs in PyTorch only"]
    assert limits(torch.ones(1, 8193)) == ["rows of at most 8192 only, got 8193", None]
    assert limits(torch.ones(2, 0)) == [None, "rows of no columns run in PyTorch and Triton only"]


class OnGpu:
    is_cuda, device = True, torch.device("cuda")


def test_auto_takes_the_first_that_runs_on_a_gpu(monkeypatch):
    triton, cuda = {"cuda": None}, {"cuda": None}
    monkeypatch.setattr(backends, "triton_absence", lambda device_type, needs: triton[device_type])
    monkeypatch.setattr(backends, "cuda_absence", cuda.get)

    def auto(*limits):
        return backends.resolve("cosine_loss", "auto", OnGpu, *limits)

    assert auto() == "triton" and auto("a limit") == "cuda" and auto("a limit", "too") == "torch"
    triton["cuda"] = "too old"
    assert auto() == "cuda"
    cuda["cuda"] = "not built"
    assert auto() == "torch"


def test_auto_takes_triton_on_a_gpu_that_runs_it_and_else_pytorch(monkeypatch):
    absence = {"cuda": None}
    monkeypatch.setattr(backends, "triton_absence", lambda device_type, needs: absence[device_type])
    assert backends.resolve("interval_attention", "auto", OnGpu) == "triton"
    assert backends.resolve("interval_attention", "auto", torch.ones(1)) == "torch"
    assert backends.resolve("interval_attention", "auto", OnGpu, "a limit") == "torch"
    absence["cuda"] = "too old"
    assert backends.resolve("interval_attention", "auto", OnGpu) == "torch"


def test_auto_takes_cpp_on_a_cpu_where_it_is_built(monkeypatch):
    absence = {"cpu": None, "cuda": "for CPUs", "meta": "for CPUs"}
    monkeypatch.setattr(backends, "cpp_absence", absence.get)
    monkeypatch.setattr(backends, "triton_absence", lambda device_type, needs: None)
    resolve, x = backends.resolve, torch.ones(1)
    assert resolve("decode_attention", "auto", x) == "cpp"  # not Triton in its interpreter
    assert resolve("decode_attention", "auto", x, cpp_limit="a limit") == "torch"
    assert resolve("decode_attention", "auto", x.to("meta")) == "torch"
    assert resolve("decode_attention", "auto", OnGpu) == "triton"
    with pytest.raises(ValueError, match="decode_attention cannot run in C\\+\\+ here: a limit"):
        resolve("decode_attention", "cpp", x, cpp_limit="a limit")
    absence["cpu"] = "not built"
    assert resolve("decode_attention", "auto", x) == "torch"
    with pytest.raises(ValueError, match="decode_attention cannot run in C\\+\\+ here: not built"):
        resolve("decode_attention", "cpp", x)


GPUS = {  # compute capability, bytes of shared memory that a block may use
    "RTX 2080": ((7, 5), 65_536),
    "A100": ((8, 0), 166_912),
    "RTX 4090": ((8, 9), 101_376),
    "H100": ((9, 0), 232_448),
    "B200": ((10, 0), 232_448),
    "RTX 5090": ((12, 0), 101_376),
    "some Hopper with less": ((9, 0), 100_000),
}


@pytest.fixture
def gpu(monkeypatch):
    """Pretends that this machine has one of `GPUS`."""

    def pretend(name):
        capability, shared = GPUS[name]
        properties = SimpleNamespace(shared_memory_per_block_optin=shared)
        monkeypatch.setattr(absence.importlib.util, "find_spec", lambda name: object())
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        absence._triton_absence.cache_clear()

    yield pretend
    absence._triton_absence.cache_clear()


@pytest.mark.parametrize(
    ("name", "matrix_reason", "row_reason"),
    [
        (
            "RTX 2080",
            "compute capability 7.5",
            "compute capability 7.5; the kernels need 8.0 or newer",
        ),
        ("A100", "compute capability 8.0; the kernels need at least 9.0 and less than 10.0", None),
        ("RTX 4090", "compute capability 8.9", None),
        ("H100", None, None),
        ("B200", "compute capability 10.0", None),
        ("RTX 5090", "compute capability 12.0", None),
        (
            "some Hopper with less",
            "100000 bytes of shared memory for a block; the kernels need",
            None,
        ),
    ],
)
def test_matrix_kernels_run_on_hopper_and_row_kernels_on_more(gpu, name, matrix_reason, row_reason):
    gpu(name)
    for needs, reason in ((absence.HOPPER, matrix_reason), (absence.ROWS, row_reason)):
        found = absence.triton_absence("cuda", needs)
        assert found is None if reason is None else found.startswith(reason)
    states = metamorph_kernels.probe()
    for operation in backends.IMPLEMENTED:
        reason = row_reason if operation in backends.ROW_OPERATIONS else matrix_reason
        expected = "available" if reason is None else f"absent: {reason}"
        assert states[operation]["triton"].startswith(expected)
    for operation, reason in (("interval_attention", matrix_reason), ("mlp_gelu", row_reason)):
        expected = "triton" if reason is None else "torch"
        assert backends.resolve(operation, "auto", OnGpu) == expected


def test_what_a_machine_lacks(monkeypatch, gpu):
    gpu("H100")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert absence.triton_absence("cuda") == "torch sees no CUDA device"
    absence._triton_absence.cache_clear()
    monkeypatch.setattr(absence.importlib.util, "find_spec", lambda name: None)
    assert absence.triton_absence("cuda") == "triton is not installed"


def test_probe_reports_every_op_and_why_a_backend_is_absent():
    report = metamorph_kernels.probe()
    assert list(report) == list(backends.IMPLEMENTED)
    for states in report.values():
        assert states["torch"] == "available"
        assert states["cuda"].startswith("absent: ") or torch.cuda.is_available()
        assert states["triton"].startswith("absent: ") or torch.cuda.is_available()
    assert "TRITON_INTERPRET" in report["interval_attention"]["triton"]
