"""`metamorph doctor`: what is installed here, what is usable, and why the rest is not."""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from importlib.util import find_spec

import torch

from metamorph.libraries import AMPERE, PROBES, first_line, import_absence
from metamorph_kernels import HOPPER, ROWS, cpp_absence, cuda_absence, probe, triton_absence

# Seen in the code of 12.8.93, 12.9.86 and 13.0.88; 13.1.80 and 13.5.37 assemble the same rightly.
FIRST_WRONG_PTXAS, FIRST_RIGHT_PTXAS = (12, 8), (13, 1)
PTXAS_WARNING = (
    "this ptxas can overwrite a register operand of a warp-group product that lives across a loop. "
    "The kernels of metamorph_kernels have none (`python -m metamorph_kernels.aot` checks); other "
    "Triton kernels may: TRITON_PTXAS_PATH names another, 13.1 or newer"
)
PACKAGES = (
    "metamorph-vpit",
    "metamorph-kernels",
    "torch",
    "triton",
    "transformers",
    "diffusers",
    "numpy",
)


def _triton_absence(device_type: str) -> str | None:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return import_absence("triton", None if interpreted else AMPERE, device_type)


BROUGHT_BY = {"apex-group-norm": "apex", "torch-varlen": "torch"}  # parts of a distribution
BACKENDS = {  # distribution: why it cannot be used on a device type, or None
    "triton": _triton_absence,
    **PROBES,
}
KERNELS = {  # key of the report: in words
    "triton_matrix_products": "Triton, matrix products",
    "triton_rows": "Triton, rows",
    "cuda": "CUDA C++",
    "cpp": "C++, on a CPU",
}


def report() -> dict:
    """Versions, processors, compiler, optional backends and ops, as plain values for JSON. What is
    absent is None; a `reason` says why, and is None where nothing is absent."""
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in PACKAGES},
        "cpu": _cpu(),
        "gpu": _gpu(),
        "nvcc": _nvcc(),
        "ptxas": _ptxas(),
        "backends": {name: _backend(name, absence) for name, absence in BACKENDS.items()},
        "kernels": {
            "triton_matrix_products": triton_absence(device_type, HOPPER),
            "triton_rows": triton_absence(device_type, ROWS),
            "cuda": cuda_absence("cuda"),
            "cpp": cpp_absence("cpu"),
        },
        "ops": probe(),
    }


def format_report(values: dict) -> str:
    """The report as a table of `name  value` lines, a block for each part."""
    gpu, nvcc, ptxas = values["gpu"], values["nvcc"], values["ptxas"]
    devices = [(device.pop("name"), device) for device in map(dict, gpu["devices"])]
    blocks = {
        "Versions": [
            (name, version or "not installed") for name, version in values["versions"].items()
        ],
        "CPU": list(values["cpu"].items()),
        "GPU": [(name, _words(device)) for name, device in devices] or [("none", gpu["reason"])],
        "CUDA compilers": [
            ("nvcc", nvcc["version"] or f"no: {nvcc['reason']}"),
            ("ptxas of Triton", ptxas["version"] or f"no: {ptxas['reason']}"),
            *([("warning", ptxas["warning"])] if ptxas["warning"] else []),
        ],
        "Optional backends": [
            (name, backend["version"] if backend["usable"] else _unusable(backend))
            for name, backend in values["backends"].items()
        ],
        "Kernels of metamorph_kernels": [
            (KERNELS[name], "usable" if reason is None else f"no: {reason}")
            for name, reason in values["kernels"].items()
        ],
        "Ops of metamorph_kernels": [
            (name, _implementations(reasons)) for name, reasons in values["ops"].items()
        ],
    }
    width = max(len(name) for rows in blocks.values() for name, _ in rows)
    lines = []
    for title, rows in blocks.items():
        lines += [title, *(f"  {name:<{width}}  {value}" for name, value in rows), ""]
    return "\n".join(lines).rstrip()


def main(*, as_json: bool = False) -> int:
    """Print the report, for a person or for a program."""
    values = report()
    print(json.dumps(values, indent=2) if as_json else format_report(values))
    return 0


def _words(values: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _unusable(backend: dict) -> str:
    version = f"{backend['version']}, " if backend["version"] else ""
    return f"{version}no: {backend['reason']}"


def _implementations(reasons: dict[str, str]) -> str:
    absent = [name for name, reason in reasons.items() if reason != "available"]
    present = ", ".join(name for name in reasons if name not in absent) or "none"
    return f"{present} (no {', '.join(absent)})" if absent else present


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> dict:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return {
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def _gpu() -> dict:
    if not torch.cuda.is_available():
        return {"devices": [], "reason": _no_gpu_reason()}
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "name": properties.name,
                "memory": f"{properties.total_memory / 2**30:.1f} GiB",
                "capability": f"{properties.major}.{properties.minor}",
                "driver": _driver(),
            }
        )
    return {"devices": devices, "reason": None}


def _no_gpu_reason() -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    try:
        torch.cuda.init()
    except Exception as error:
        return first_line(error)
    return "torch sees no CUDA device"


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return _output(query).partition("\n")[0] or "unknown"


def _nvcc() -> dict:
    path = shutil.which("nvcc")
    if path is None:
        return {"version": None, "reason": "nvcc is not on PATH"}
    release = re.search(r"V(\d[\d.]*)", _output([path, "--version"]))
    if release is None:
        return {"version": None, "reason": f"{path} --version names no release"}
    return {"version": release[1], "reason": None}


def _ptxas() -> dict:
    """The assembler that turns Triton's PTX into machine code."""
    if find_spec("triton") is None:
        return _no_ptxas("triton is not installed")
    from triton import knobs

    try:
        path = knobs.nvidia.ptxas.path
    except RuntimeError as error:  # it finds none that runs
        return _no_ptxas(first_line(error))
    release = re.search(r"V(\d[\d.]*)", _output([path, "--version"]))
    if release is None:
        return _no_ptxas(f"{path} --version names no release")
    version = tuple(map(int, release[1].split(".")[:2]))
    wrong = FIRST_WRONG_PTXAS <= version < FIRST_RIGHT_PTXAS
    return {"version": release[1], "reason": None, "warning": PTXAS_WARNING if wrong else None}


def _no_ptxas(reason: str) -> dict:
    return {"version": None, "reason": reason, "warning": None}


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _backend(distribution: str, absence: Callable[[str], str | None]) -> dict:
    reason = absence("cuda")
    return {
        "usable": reason is None,
        "version": _version(BROUGHT_BY.get(distribution, distribution))
        or ("version unknown" if reason is None else None),
        "reason": reason,
    }
