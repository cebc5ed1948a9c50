"""What ran where: device, clocks, versions, commit, and a fingerprint of the code."""

import hashlib
import importlib.metadata
import importlib.util
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
CODE = ("kernels", "metamorph", "bench", "csrc", "tests/kernels", "tests/csrc")
BUILD = ("CMakeLists.txt",)
PEERS = (  # distributions; a result beside another version of one is another result
    "cut-cross-entropy",
    "flash-attn",
    "flash-attn-4",
    "liger-kernel",
    "magi-attention",
    "nvidia-cudnn-frontend",
    "quack-kernels",
    "torchao",
    "transformer-engine",
    "xformers",
)
SOURCES = (".py", ".cu", ".cuh", ".cpp", ".h")
QUERIES = (
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "power.draw",
    "power.limit",
    "temperature.gpu",
)


def identity(device: torch.device) -> dict[str, str]:
    """What makes two results comparable: the same code, device and versions."""
    digest = hashlib.sha256()
    files = [path for folder in CODE for path in (ROOT / folder).rglob("*")]
    files += [ROOT / name for name in BUILD]
    for path in sorted(path for path in files if path.suffix in SOURCES or path.name in BUILD):
        digest.update(path.relative_to(ROOT).as_posix().encode())
        digest.update(path.read_bytes())
    return {
        "code": digest.hexdigest()[:16],
        "device": _device_name(device),
        "torch": torch.__version__,
        "triton": _triton_version(),
        "peers": ", ".join(f"{name} {version}" for name, version in _peers()) or "none",
    }


def machine(device: torch.device) -> dict[str, str]:
    """`identity` and all else that a reader of a figure may ask; the clocks are those of now."""
    return identity(device) | {
        "commit": _commit(),
        "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "cuda": torch.version.cuda or "none",
        **(_gpu_state() if device.type == "cuda" else {}),
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def _triton_version() -> str:
    if importlib.util.find_spec("triton") is None:
        return "none"
    import triton

    return triton.__version__


def _peers() -> list[tuple[str, str]]:
    found = []
    for name in PEERS:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    commit = _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
    changed = commit and _output("git", "-C", str(ROOT), "status", "--porcelain")
    return (commit or "unknown") + (" with changes" if changed else "")


def _gpu_state() -> dict[str, str]:
    values = _output("nvidia-smi", f"--query-gpu={','.join(QUERIES)}", "--format=csv,noheader")
    if not values:
        return {}
    return dict(zip(QUERIES, values.splitlines()[0].split(", "), strict=True))


def _output(*command: str) -> str:
    """What a command prints, or nothing where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
