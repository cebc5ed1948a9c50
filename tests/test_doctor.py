"""The doctor tells the truth about what is here, and why the rest is not usable."""

import json
import re
from functools import partial

import pytest
import torch

import metamorph_kernels
from metamorph import doctor, libraries
from metamorph.errors import UserError
from tests import fake_libraries
from tests.pages import ROOT


@pytest.fixture
def with_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("triton_absence", "cuda_absence", "cpp_absence"):
        monkeypatch.setattr(doctor, name, lambda device_type, needs=None: None)
    monkeypatch.setattr(doctor, "probe", dict)
    monkeypatch.setattr(libraries, "gpu_absence", lambda device_type, oldest, below=None: None)


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def install(monkeypatch, tmp_path, name: str, code: str) -> None:
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)


def test_report_is_plain_and_complete():
    values = doctor.report()
    assert json.loads(json.dumps(values)) == values
    assert values["versions"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert values["cpu"]["cores"] >= 1
    assert set(values["backends"]) == set(doctor.BACKENDS)
    for name in ("metamorph-vpit", "metamorph-kernels"):
        assert values["versions"][name] == metamorph_kernels.__version__
    assert values["ops"] == metamorph_kernels.probe()
    assert bool(values["gpu"]["devices"]) == torch.cuda.is_available()
    assert set(values["kernels"]) == {"triton_matrix_products", "triton_rows", "cuda", "cpp"}
    for backend in values["backends"].values():
        assert backend["usable"] == (backend["reason"] is None)


def test_json_has_the_keys_of_the_page(capsys):
    assert doctor.main(as_json=True) == 0
    values = json.loads(capsys.readouterr().out)
    assert values == doctor.report()
    page = keys_of_table((ROOT / "docs/machines.md").read_text())
    assert list(page) == list(values)
    for key in ("cpu", "nvcc", "ptxas", "kernels"):
        assert set(values[key]) <= page[key]
    assert set(values["gpu"]) <= page["gpu"]
    for backend in values["backends"].values():
        assert set(backend) <= page["backends"]


def keys_of_table(text: str) -> dict[str, set[str]]:
    """Keys of the page's first table, with what else each line names."""
    lines = re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE)
    return {key: set(re.findall(r"`(\w+)`", told)) for key, told in lines}


def test_what_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package",))
    values = doctor.report()
    assert values["versions"]["no-such-package"] is None
    assert re.search(r"^  no-such-package +not installed$", doctor.format_report(values), re.M)


def test_main_prints_every_backend_and_op(capsys):
    assert doctor.main() == 0
    printed = capsys.readouterr().out
    for name in (*doctor.BACKENDS, *metamorph_kernels.probe(), "nvcc", "python"):
        assert f"  {name} " in printed


def test_kernels_that_cannot_run_have_a_reason(monkeypatch):
    monkeypatch.setattr(doctor, "cuda_absence", lambda device_type: f"not built for {device_type}")
    reasons = {metamorph_kernels.HOPPER: "an A100", metamorph_kernels.ROWS: None}
    monkeypatch.setattr(doctor, "triton_absence", lambda device_type, needs: reasons[needs])
    printed = doctor.format_report(doctor.report())
    assert re.search(r"^  CUDA C\+\+ +no: not built for cuda$", printed, re.MULTILINE)
    assert re.search(r"^  Triton, matrix products +no: an A100$", printed, re.MULTILINE)
    assert re.search(r"^  Triton, rows +usable$", printed, re.MULTILINE)


def test_a_missing_gpu_has_a_reason(without_gpu, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in doctor.report()["gpu"]["reason"]

    def fail():
        raise RuntimeError("no driver\nand more")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", fail)
    assert doctor.report()["gpu"]["reason"] == "RuntimeError: no driver"


def test_gpus_are_listed(with_gpu, monkeypatch):
    class Properties:
        name, total_memory, major, minor = "Some GPU", 80 * 2**30, 9, 0

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    monkeypatch.setattr(doctor, "BACKENDS", {})
    monkeypatch.setattr(doctor, "_output", lambda command: "580.1\n580.1\n")
    values = doctor.report()
    assert values["gpu"]["devices"] == [
        {"name": "Some GPU", "memory": "80.0 GiB", "capability": "9.0", "driver": "580.1"}
    ]
    line = r"Some GPU +memory 80\.0 GiB, capability 9\.0, driver 580\.1\n"
    assert re.search(line, doctor.format_report(values))
    assert values["gpu"]["devices"][0]["name"] == "Some GPU"


def backend_of(monkeypatch, module: str, oldest=libraries.AMPERE) -> dict:
    absence = partial(libraries.import_absence, module, oldest)
    monkeypatch.setattr(doctor, "BACKENDS", {"some-backend": absence})
    return doctor.report()["backends"]["some-backend"]


def test_backend_that_is_not_installed(monkeypatch):
    backend = backend_of(monkeypatch, "surely_not_installed")
    assert backend == {"usable": False, "version": None, "reason": "not installed"}


def test_broken_backend_gives_its_own_reason(monkeypatch, tmp_path, with_gpu):
    install(monkeypatch, tmp_path, "broken_backend", "raise OSError('undefined symbol: x\\ny')")
    monkeypatch.setattr(doctor, "_gpu", lambda: {"devices": [], "reason": "pretended"})
    backend = backend_of(monkeypatch, "broken_backend")
    assert (backend["usable"], backend["reason"]) == (False, "OSError: undefined symbol: x")


def test_working_backend_is_usable_only_with_a_gpu(monkeypatch, tmp_path, without_gpu):
    install(monkeypatch, tmp_path, "working_backend", "")
    backend = backend_of(monkeypatch, "working_backend")
    assert not backend["usable"] and backend["reason"] == "torch sees no CUDA device"
    assert backend_of(monkeypatch, "working_backend", oldest=None)["usable"]


def test_a_library_and_an_error_about_it_give_the_same_reason(monkeypatch, without_gpu):
    fake_libraries.install(monkeypatch, "liger-kernel")
    fake_libraries.install(monkeypatch, "flash-attn", leave_out="flash_attn_varlen_func")
    backends = doctor.report()["backends"]
    assert backends["liger-kernel"]["reason"] == "torch sees no CUDA device"
    monkeypatch.setattr(libraries, "gpu_absence", lambda device_type, oldest, below=None: None)
    values = doctor.report()
    assert values["backends"]["liger-kernel"]["usable"]
    reason = "this version has no flash_attn.flash_attn_varlen_func"
    assert values["backends"]["flash-attn"]["reason"] == reason
    assert re.search(rf"^  flash-attn +no: {reason}$", doctor.format_report(values), re.MULTILINE)
    with pytest.raises(UserError, match=reason):
        libraries.require("model.attention: flash_attn", ["flash-attn"], torch.device("cuda"))


def test_triton_is_usable_without_gpu_in_its_interpreter(monkeypatch, without_gpu):
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not doctor.report()["backends"]["triton"]["usable"]
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert doctor.report()["backends"]["triton"]["usable"]


def test_nvcc_absent_and_present(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert doctor.report()["nvcc"] == {"version": None, "reason": "nvcc is not on PATH"}
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/opt/nvcc")
    monkeypatch.setattr(doctor, "_output", lambda command: "release 13.0, V13.0.88\n")
    assert doctor.report()["nvcc"] == {"version": "13.0.88", "reason": None}
    monkeypatch.setattr(doctor, "_output", lambda command: "")
    assert doctor.report()["nvcc"]["reason"] == "/opt/nvcc --version names no release"


@pytest.mark.parametrize(
    ("version", "warned"),
    [("12.4.99", False), ("12.8.93", True), ("13.0.88", True), ("13.1.80", False)],
)
def test_a_ptxas_that_miscompiles_is_warned_of(monkeypatch, version, warned):
    pytest.importorskip("triton")
    monkeypatch.setattr(doctor, "_output", lambda command: f"release x, V{version}\n")
    values = doctor.report()
    assert values["ptxas"]["version"] == version
    printed = doctor.format_report(values)
    assert re.search(rf"^  ptxas of Triton +{version}$", printed, re.MULTILINE)
    assert ("TRITON_PTXAS_PATH" in printed) == warned
    monkeypatch.setattr(doctor, "_output", lambda command: "")
    assert doctor.report()["ptxas"]["reason"].endswith("ptxas --version names no release")
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert doctor.report()["ptxas"]["reason"] == "triton is not installed"


def test_no_ptxas_at_all_is_one_line(monkeypatch, tmp_path):
    triton = pytest.importorskip("triton")
    ptxas = vars(type(triton.knobs.nvidia))["ptxas"]
    monkeypatch.setattr(ptxas, "default_path", str(tmp_path / "ptxas"))
    monkeypatch.delenv("TRITON_PTXAS_PATH", raising=False)
    printed = doctor.format_report(doctor.report())
    line = r"^  ptxas of Triton +no: RuntimeError: Cannot find ptxas$"
    assert re.search(line, printed, re.MULTILINE)


def test_a_command_that_cannot_run_has_no_output():
    assert doctor._output(["surely-not-a-command"]) == ""
