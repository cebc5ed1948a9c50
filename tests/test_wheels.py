"""Wheels of both distributions hold what they need outside a clone."""

import email
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "configs")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> dict[str, Path]:
    """Each unpacked, by its import name; built of copies, for a build leaves files behind."""
    folder = tmp_path_factory.mktemp("wheels")
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "build", "*.egg-info")
    for name in (*SOURCES, "metamorph", "kernels"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / "clone" / name, ignore=ignored)
        else:
            (folder / "clone").mkdir(exist_ok=True)
            shutil.copy(source, folder / "clone")
    for project in ("clone", "clone/kernels"):
        subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
            + ["--wheel-dir", folder, folder / project],
            env=os.environ | {"METAMORPH_CPU": "0", "METAMORPH_CUDA": "0"},
            check=True,
        )
    unpacked = {}
    for name in ("metamorph_vpit", "metamorph_kernels"):
        [wheel] = folder.glob(f"{name}-*.whl")
        unpacked[name] = folder / name
        zipfile.ZipFile(wheel).extractall(unpacked[name])
    return unpacked


def run(paths: list[Path], folder: Path, *arguments: str) -> str:
    """What Python prints in `folder` with these paths before all others, and not the clone's."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def metadata(unpacked: Path) -> email.message.Message:
    [file] = unpacked.glob("*.dist-info/METADATA")
    return email.message_from_string(file.read_text())


def test_the_ops_run_from_their_wheel(wheels, tmp_path):
    program = (
        "import metamorph_kernels, torch\n"
        "print(metamorph_kernels.__file__, metamorph_kernels.__version__)\n"
        "ones = torch.ones(2, 3)\n"
        "print(metamorph_kernels.cosine_loss(ones, -ones).item())"
    )
    shown = run([wheels["metamorph_kernels"]], tmp_path, "-c", program).split()
    assert Path(shown[0]).is_relative_to(wheels["metamorph_kernels"])
    assert shown[1] == metadata(wheels["metamorph_kernels"])["Version"]
    assert float(shown[2]) == pytest.approx(2)


def test_the_trainer_runs_from_its_wheel(wheels, tmp_path):
    """One process for all that it shows: to import the trainer takes seconds."""
    program = """
from pathlib import Path
from metamorph.cli.command import main
from metamorph.quickstart import run
print(run.__file__, run.stage_config("decoder", Path()).model.vision, sep="\\n")
print(run.ONE_PASS_DECODER / "vit/diffusion_pytorch_model.safetensors")
main(["train", "configs/metamorph_8b/instruct.yaml", "--dry-run", "--world-size", "256"])
main(["quickstart", "--help"])
"""
    shown = run([*wheels.values()], tmp_path, "-c", program)
    for path in map(Path, shown.splitlines()[:3]):
        assert path.is_relative_to(wheels["metamorph_vpit"]) and path.exists()
    assert "plan of stage instruct on 256" in shown  # a run file by its name in the clone
    assert "metamorph quickstart" in shown


def test_run_files_are_shipped_under_their_names_in_the_clone(wheels):
    shipped = wheels["metamorph_vpit"] / "metamorph/configs"
    ours = sorted(path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml"))
    assert sorted(path.relative_to(shipped) for path in shipped.rglob("*.yaml")) == ours


def test_the_page_of_the_server_is_shipped_whole(wheels):
    shipped, ours = wheels["metamorph_vpit"] / "metamorph", ROOT / "metamorph"
    names = [{path.name for path in (each / "serving/page").iterdir()} for each in (shipped, ours)]
    assert "index.html" in names[0] and names[0] == names[1]


@pytest.mark.parametrize("name", ["metamorph_vpit", "metamorph_kernels"])
def test_a_package_index_shows_no_link_that_leads_nowhere(wheels, name):
    text = metadata(wheels[name]).get_payload()
    assert len(text) > 1000
    assert re.findall(r"\]\((?!https?:)[^)]*\)", text) == []


@pytest.mark.parametrize("name", ["metamorph_vpit", "metamorph_kernels"])
def test_types_and_license_are_shipped(wheels, name):
    assert list(wheels[name].glob("*/py.typed"))
    assert list(wheels[name].glob("*.dist-info/licenses/LICENSE"))
