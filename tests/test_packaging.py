"""Packaging: pins cover every dependency, and the commands people are told to type exist."""

import importlib.metadata
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.lower_bounds import bounds, untrue

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
KERNELS = tomllib.loads((ROOT / "kernels/pyproject.toml").read_text())
README = ROOT / "README.md"


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def declared() -> list[Requirement]:
    """What make installs: the other extras fit themselves to a machine with a GPU."""
    extras = PROJECT["project"]["optional-dependencies"]
    names = [*extras["test"], *extras["docs"]]
    for project in (PROJECT, KERNELS):
        names += [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    requirements = {Requirement(name) for name in names}
    return sorted((each for each in requirements if each.name != "metamorph-kernels"), key=str)


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("requirement", declared(), ids=lambda requirement: requirement.name)
def test_every_dependency_is_pinned_within_its_range(requirement):
    version = pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version)


def test_what_the_dependencies_need_is_pinned_too():
    pinned, missing = pins(), set()
    for distribution in importlib.metadata.distributions():
        name = canonicalize_name(distribution.name)
        if distribution.version.partition("+")[0] != pinned.get(name):
            continue
        for requirement in map(Requirement, distribution.requires or []):
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            # torch's CUDA wheel pins its own CUDA packages exactly.
            own = requirement.name.startswith(("nvidia-", "cuda-"))
            if applies and not own and canonicalize_name(requirement.name) not in pinned:
                missing.add(f"{requirement.name} for {name}")
    assert not missing


@pytest.mark.parametrize("project", [PROJECT, KERNELS], ids=["metamorph", "kernels"])
def test_every_dependency_has_one_lower_bound_or_is_pinned(project):
    """What `make lower-bounds` installs, and extras for a GPU, which it does not."""
    lists = [project["project"]["dependencies"]]
    lists += project["project"]["optional-dependencies"].values()
    for names in lists:
        operators = {each.operator for name in names for each in Requirement(name).specifier}
        bounded = [name for name in names if Requirement(name).specifier]
        assert bounded == list(names)
        assert operators == {">="} or "==" in operators  # with caps of what the pinned one needs


def test_extras_have_the_bounds_that_are_tested():
    tested = bounds()
    for names in PROJECT["project"]["optional-dependencies"].values():
        for requirement in map(Requirement, names):
            [bound] = requirement.specifier
            assert tested.get(requirement.name, Version(bound.version)) == Version(bound.version)


def test_a_version_above_its_bound_is_told_except_of_torch():
    lowest = bounds()
    assert untrue(lowest) == []
    assert untrue(lowest | {"torch": Version("99"), "numpy": Version("99")}) == ["numpy"]
    assert untrue(lowest | {"torch": Version("2.10")}) == ["torch"]


def test_the_lowest_versions_have_an_environment_of_their_own():
    command = ["make", "--dry-run", "--always-make", "lower-bounds", "TORCH=2.11.0"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    programs = re.findall(r"^(?:\w+=\S+ )*(\S+/bin/\S+)", run.stdout, re.MULTILINE)
    assert {Path(program).parts[0] for program in programs} == {".venv-lower-bounds-2.11.0"}
    assert "--no-deps torch==2.11.0\n" in run.stdout
    assert "--resolution lowest-direct" in run.stdout
    tests = re.findall(r"(?<= )tests/\S+", run.stdout)
    assert len(tests) > 10 and all((ROOT / test).exists() for test in tests)


def test_pins_are_exact_sorted_and_for_any_build():
    names = list(pins())
    assert names == sorted(names)
    for name, version in pins().items():
        assert canonicalize_name(name) == name
        assert re.fullmatch(r"[0-9][0-9.]*(post\d+)?", version), f"{name}=={version}"


def test_make_alone_lists_every_target():
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^make ([a-z-]+)", listed, re.MULTILINE)) == make_targets()


def test_make_refuses_an_old_python(tmp_path):
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.10.4\nexit 1\n')
    old.chmod(0o755)
    (tmp_path / "kernels").mkdir()
    for name in (
        *("Makefile", "constraints.txt", "pyproject.toml", "setup.py"),
        *("kernels/pyproject.toml", "kernels/setup.py"),
    ):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())

    def setup(python: str) -> str:
        command = ["make", "setup", f"PYTHON={python}"]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode != 0 and not (tmp_path / ".venv").exists()
        return run.stderr

    assert "MetaMorph needs Python 3.11 or newer, and" in setup(str(old))
    assert "is Python 3.10.4" in setup(str(old))
    assert "surely-no-python was not found" in setup("surely-no-python")


def test_continuous_integration_runs_existing_targets():
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111
    called = re.findall(r"^make ([a-z-]+)$", script.read_text(), re.MULTILINE)
    assert "test" in called and set(called) <= make_targets()


@pytest.mark.skipif(not README.exists(), reason="no README.md")
def test_readme_commands_are_make_targets():
    code = re.findall(r"```.*?```|`[^`\n]+`", README.read_text(), re.DOTALL)
    command = re.compile(r"(?:^|`|\$ |&& )make ([a-z-]+)", re.MULTILINE)
    named = {name for text in code for name in command.findall(text)}
    assert {"quickstart", "test"} <= named <= make_targets()


def test_no_package_is_called_kernels_and_assets_are_small():
    assert not (ROOT / "kernels/__init__.py").exists()  # it would hide Hugging Face's
    for path in (ROOT / "metamorph/quickstart/assets").glob("**/*"):
        assert path.is_dir() or path.stat().st_size <= 10 * 2**20


def test_the_ops_need_torch_alone():
    assert [Requirement(each).name for each in KERNELS["project"]["dependencies"]] == ["torch"]
    assert "metamorph-kernels>=0.1" in PROJECT["project"]["dependencies"]


def test_license_is_apache_in_full():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0" in text
    assert "END OF TERMS AND CONDITIONS" in text and "The MetaMorph authors" in text
    assert (ROOT / "kernels/LICENSE").read_text() == text
    for project in (PROJECT, KERNELS):
        assert project["project"]["license"] == "Apache-2.0"
