"""Why an optional library cannot be used, one reason for each way to lack it."""

import inspect
import json
import sys
from pathlib import Path

import pytest
import torch

from metamorph import libraries
from metamorph.errors import UserError
from metamorph.model.transformer_engine_linear import SUPPORT
from tests import fake_libraries, fake_transformer_engine


@pytest.fixture(autouse=True)
def no_libraries(monkeypatch):
    fake_libraries.remove_all(monkeypatch)


@pytest.mark.parametrize("library", fake_libraries.MODULES)
def test_absent_then_without_gpu_then_usable(monkeypatch, library):
    probe = libraries.PROBES[library]
    without_kernels = "no kernels for cpu devices"
    assert probe("cpu") == (without_kernels if library == "torch-varlen" else "not installed")
    fake_libraries.install(monkeypatch, library)
    needs_gpu = library not in ("lmms-eval", "torchtitan", "trackio")
    assert probe("cpu") == (without_kernels if needs_gpu else None)
    fake_libraries.pretend_gpu(monkeypatch)
    assert probe("cpu") is None


@pytest.mark.parametrize(
    ("library", "module", "name"),
    [
        ("flash-attn", "flash_attn", "flash_attn_varlen_func"),
        ("flash-attn-3", "flash_attn_interface", "flash_attn_varlen_func"),
        ("flash-attn-4", "flash_attn.cute", "flash_attn_varlen_func"),
        ("torch-varlen", "torch.nn.attention.varlen", "varlen_attn"),
        ("xformers", "xformers.ops", "memory_efficient_attention"),
        ("xformers", "xformers.ops.fmha.attn_bias", "BlockDiagonalCausalMask"),
        ("liger-kernel", "liger_kernel.ops", "LigerRopeFunction"),
        ("flash-attn", "flash_attn", "flash_attn_func"),
        ("apex-group-norm", "apex.contrib.group_norm", "GroupNorm"),
        ("apex", "apex.optimizers", "FusedAdam"),
        ("apex", "apex.normalization.fused_layer_norm", "fused_rms_norm_affine"),
        ("lmms-eval", "lmms_eval.api.instance", "TokenCounts"),
        ("torchtitan", "torchtitan.trainer", "Trainer"),
        ("trackio", "trackio", "Image"),
    ],
)
def test_a_version_without_the_function(monkeypatch, library, module, name):
    fake_libraries.install(monkeypatch, library, leave_out=name)
    fake_libraries.pretend_gpu(monkeypatch)
    assert libraries.PROBES[library]("cpu") == f"this version has no {module}.{name}"


def test_a_package_that_cannot_be_imported(monkeypatch):
    fake_libraries.install(monkeypatch, "xformers")
    fake_libraries.pretend_gpu(monkeypatch)
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    reason = libraries.xformers_absence("cpu")
    assert reason.startswith("ModuleNotFoundError: import of xformers.ops halted")


@pytest.mark.parametrize("code", ["import a_web_framework", ""], ids=["broken", "importable"])
def test_the_apex_of_pypi_is_recognised(monkeypatch, tmp_path, code):
    """Without a GPU too: on any machine it is the wrong package."""
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text(code)
    for name in fake_libraries.MODULES["apex"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    reason = libraries.apex_absence("cpu")
    assert reason.startswith("this is not NVIDIA apex, or it is broken (ModuleNotFoundError")


@pytest.mark.parametrize("name", ["FusedAdam", "FusedRMSNorm"])
def test_an_apex_without_its_cuda_extensions(monkeypatch, name):
    def refuse(*arguments):
        raise RuntimeError(f"{name} requires cuda extensions")

    fake_libraries.install(monkeypatch, "apex", **{name: refuse})
    fake_libraries.pretend_gpu(monkeypatch)
    assert libraries.apex_absence("cpu") == f"RuntimeError: {name} requires cuda extensions"


def test_an_xformers_whose_kernels_are_of_another_pytorch(monkeypatch):
    failure = OSError("undefined symbol: aoti_torch\nsecond line")
    fake_libraries.install(monkeypatch, "xformers", _cpp_library_load_exception=failure)
    fake_libraries.pretend_gpu(monkeypatch)
    assert libraries.xformers_absence("cpu") == "OSError: undefined symbol: aoti_torch"


def test_an_xformers_that_was_built_without_cuda(monkeypatch):
    fake_libraries.install(monkeypatch, "xformers", _built_with_cuda=False)
    fake_libraries.pretend_gpu(monkeypatch)
    assert libraries.xformers_absence("cpu") == "this build has no kernels for GPUs"


@pytest.fixture
def flash_attn_folder(monkeypatch, tmp_path):
    """An empty folder `flash_attn` that Python finds; what is imported from it stops the test."""
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "flash_attn"
    folder.mkdir()
    return folder


def test_flash_attn_4_without_flash_attn_is_neither_it_nor_for_xformers(
    monkeypatch, flash_attn_folder
):
    """Both take any package `flash_attn` for flash-attn's, and fail at its first function."""
    fake_libraries.install(monkeypatch, "xformers")
    (flash_attn_folder / "cute").mkdir()
    (flash_attn_folder / "cute" / "__init__.py").write_text("raise SystemExit('imported')")
    assert libraries.flash_attn_4_absence("cpu") == "no kernels for cpu devices"
    reason = "not installed (the package flash_attn here is flash-attn-4's)"
    assert libraries.flash_attn_absence("cuda") == reason
    message = "xformers: it takes the package flash_attn for that of flash-attn 2"
    with pytest.raises(UserError, match=message):
        libraries.require("model.attention: xformers", ["xformers"], torch.device("cuda"))


def test_what_an_uninstalled_package_left_is_no_flash_attn_4(monkeypatch, flash_attn_folder):
    """Python finds a package in any folder, if it has nothing but a `__pycache__`."""
    fake_libraries.install(monkeypatch, "xformers")
    fake_libraries.pretend_gpu(monkeypatch)
    (flash_attn_folder / "__pycache__").mkdir()
    assert libraries.flash_attn_4_absence("cuda") == "not installed"
    assert libraries.flash_attn_absence("cuda") == "this version has no flash_attn.flash_attn_func"
    assert libraries.xformers_absence("cuda") is None


def test_flash_attn_without_flash_attn_4(flash_attn_folder):
    (flash_attn_folder / "__init__.py").write_text("raise SystemExit('imported')")
    assert libraries.flash_attn_4_absence("cuda") == "not installed"
    assert libraries.flash_attn_absence("cpu") == "no kernels for cpu devices"


def test_the_early_flash_attn_4_that_flash_attn_brings(monkeypatch):
    def early(q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, causal=False):
        """As flash-attn 2.8.3 has it."""

    fake_libraries.install(monkeypatch, "flash-attn-4", flash_attn_varlen_func=early)
    fake_libraries.pretend_gpu(monkeypatch)
    reason = libraries.flash_attn_4_absence("cpu")
    assert reason.endswith("which flash-attn 2.8 brings: install flash-attn-4 after it")


@pytest.mark.parametrize("library", ["fastapi", "uvicorn", "prometheus-client", "torchmetrics"])
def test_what_serving_and_evaluation_need(monkeypatch, library):
    assert libraries.PROBES[library]("cpu") is None
    monkeypatch.setattr(libraries, "installed", lambda package: False)
    assert libraries.PROBES[library]("cpu") == "not installed"


def test_a_gpu_that_is_too_old_or_too_new(monkeypatch):
    fake_libraries.install(monkeypatch, "flash-attn")
    fake_libraries.install(monkeypatch, "flash-attn-3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert libraries.flash_attn_absence("cuda") is None
    needed = "the kernels need at least 9.0 and less than 10.0"
    assert libraries.flash_attn_3_absence("cuda") == f"compute capability 8.0; {needed}"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (10, 0))
    assert libraries.flash_attn_3_absence("cuda") == f"compute capability 10.0; {needed}"


SIGNATURES = json.loads(Path(__file__).with_name("signatures.json").read_text())


@pytest.mark.parametrize("stand_in", SIGNATURES)
def test_a_stand_in_takes_the_parameters_of_the_real_one_in_their_order(stand_in):
    first = stand_in.partition(".")[0]
    found = fake_libraries if hasattr(fake_libraries, first) else fake_transformer_engine
    for name in stand_in.split("."):
        found = getattr(found, name)
    names = []
    for name, parameter in inspect.signature(found).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in names:
            names.append("*")
        names.append(name)
    names = [name for name in names if name not in ("self", "ctx")]
    assert names == SIGNATURES[stand_in]["parameters"], SIGNATURES[stand_in]["from"]


def test_every_stand_in_has_a_signature_on_record():
    recorded = {name.partition(".")[0] for name in SIGNATURES}
    functions = {
        value.__name__
        for modules in fake_libraries.MODULES.values()
        for contents in modules.values()
        for value in contents.values()
        if callable(value)
    }
    made_without_arguments = set(SUPPORT)
    assert functions - recorded == made_without_arguments | {"DTensor"}  # which is PyTorch's


def test_the_record_is_true_of_the_torch_that_is_installed(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch.nn.attention.varlen")
    record = SIGNATURES["varlen_attn"]
    version = torch.__version__.partition("+")[0]
    if record["from"] != f"torch {version} (wheel)":
        pytest.skip(f"torch {version}")
    from torch.nn.attention.varlen import varlen_attn

    names = [name for name in record["parameters"] if name != "*"]
    assert list(inspect.signature(varlen_attn).parameters) == names
