"""gpu.sh on its way to Python: from any folder, and with peers from wheels."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[3]


def test_the_script_works_from_anywhere(tmp_path):
    interpreter = tmp_path / "python"
    interpreter.write_text('#!/bin/sh\necho "$PWD $PYTHONPATH $OUT $*"\n')
    interpreter.chmod(0o755)
    script = ROOT / "bench" / "gpu.sh"
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(interpreter)}
    for out, folder in (({}, ROOT / "bench" / "out"), ({"OUT": "here"}, tmp_path / "here")):
        printed = subprocess.run(
            ["bash", script, "--quick"],
            cwd=tmp_path,
            env=environment | out,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert printed == f"{ROOT} {ROOT}:{ROOT}/kernels {folder} -m bench.runs.gpu --quick\n"


PRETENDS_TO_BE_PYTHON = """#!/bin/sh
target="$PWD/build/one-wheel/shared"
case "$*" in
    *alien*) exit 1 ;;
    *pip*) mkdir -p "$target"; touch "$target/${9##*/}"; echo "$*" >> "$OUT.log" ;;
    *) echo "$PYTHONPATH $UNPACKED_WHEELS" ;;
esac
"""


def test_the_script_unpacks_wheels_and_survives_a_bad_one(tmp_path):
    """Into one folder, as an installation would: some wheels of one package share a folder."""
    bench = tmp_path / "checkout" / "bench"
    bench.mkdir(parents=True)
    shutil.copy(ROOT / "bench" / "gpu.sh", bench)
    for name in ("peer-1.whl", "alien-1.whl", "peer_libraries-1.whl"):
        (tmp_path / name).touch()
    interpreter = tmp_path / "python"
    interpreter.write_text(PRETENDS_TO_BE_PYTHON)
    interpreter.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(interpreter), "WHEELS": "."}
    done = subprocess.run(
        ["bash", bench / "gpu.sh"],
        cwd=tmp_path,
        env=environment | {"OUT": "out"},
        capture_output=True,
        text=True,
        check=True,
    )
    root, wheels = bench.parent, bench.parent / "build" / "unpacked-wheels"
    assert done.stderr == "left out: alien-1.whl\n"
    assert done.stdout == f"{root}:{root}/kernels {wheels}\n"
    assert {path.name for path in (wheels / "shared").iterdir()} == {
        "peer-1.whl",
        "peer_libraries-1.whl",
    }
    assert "--no-index --no-deps --target build/one-wheel " in (tmp_path / "out.log").read_text()


def test_unpacked_wheels_come_last_and_their_path_files_are_read(tmp_path):
    (tmp_path / "torch.py").touch()
    (tmp_path / "added").mkdir()
    (tmp_path / "added.pth").write_text("added\n")
    done = subprocess.run(
        [sys.executable, "-c", "import bench, sys, torch; print(torch.__version__, sys.path[-2:])"],
        env=os.environ | {"UNPACKED_WHEELS": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{torch.__version__} {[str(tmp_path), str(tmp_path / 'added')]}\n"
