"""A decoder's folder is opened by diffusers alone, as docs/drawing.md shows, and drawn in less
memory by diffusers' own means."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from metamorph.decoder.pipeline import VisualDecoder
from tests.pages import ROOT, blocks
from tests.tiny_run import tiny_decoder

PAGE = ROOT / "docs/drawing.md"
WITHOUT_METAMORPH = """
import sys
for name in ("metamorph", "accelerate", "peft", "torchao", "transformers"):
    sys.modules[name] = None  # an import of it fails
"""
DRAW = """
features = torch.load("features.pt")
for number, picture in enumerate(pipeline.draw(features, seeds=[1, 2], scheduler="unipc")):
    picture.save(f"{number}.png")
"""


@pytest.mark.slow
def test_diffusers_opens_the_folder_in_a_process_without_metamorph(tmp_path):
    folder = tmp_path / "runs/mine/model/decoder"
    decoder = tiny_decoder()
    decoder.save_pretrained(folder)
    features = torch.nn.functional.normalize(torch.randn(2, 4, 24), dim=-1)
    torch.save(features, tmp_path / "features.pt")
    *_, shown = blocks(PAGE, "py")
    program = tmp_path / "program.py"
    program.write_text(WITHOUT_METAMORPH + shown + DRAW)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for number, expected in enumerate(decoder.draw(features, seeds=[1, 2], scheduler="unipc")):
        with Image.open(tmp_path / f"{number}.png") as drawn:
            assert np.abs(np.subtract(drawn, expected, dtype=int)).max() <= 1
    # What that process saved is again one of ours, and brings its code along.
    again = VisualDecoder.from_folder(tmp_path / "again")
    assert again.draw(features, seeds=[1, 2]) == decoder.draw(features, seeds=[1, 2])
    for name in ("pipeline.py", "denoising.py", "folder_code.py", "samplers.py"):
        assert (tmp_path / "again" / name).read_text() == (folder / name).read_text()


def test_the_code_in_a_folder_names_nothing_of_metamorph_to_import(tmp_path):
    tiny_decoder().save_pretrained(tmp_path)
    code = {path.name: path.read_text() for path in tmp_path.rglob("*.py")}
    assert set(code) == {
        "pipeline.py", "denoising.py", "folder_code.py", "samplers.py",
        "metamorph.decoder.adapter.py",
    }  # fmt: skip
    for text in code.values():
        assert "from metamorph" not in text and "import metamorph" not in text


def test_code_in_a_folder_is_never_run_by_metamorph(tmp_path):
    tiny_decoder().save_pretrained(tmp_path)
    for path in tmp_path.rglob("*.py"):
        path.write_text("raise SystemExit")
    assert VisualDecoder.from_folder(tmp_path).feature_width == 24


def test_another_class_is_not_taken_from_a_folder(tmp_path):
    tiny_decoder().save_pretrained(tmp_path)
    path = tmp_path / "model_index.json"
    index = json.loads(path.read_text())
    assert index["scheduler"] == ["diffusers", "DPMSolverMultistepScheduler"]
    assert index["adapter"] == ["metamorph.decoder.adapter", "FeatureAdapter"]


def test_parts_are_offloaded_in_the_order_in_which_they_work():
    accelerate = pytest.importorskip("accelerate")
    decoder = tiny_decoder()
    features = torch.nn.functional.normalize(torch.randn(2, 4, 24), dim=-1)
    expected = decoder.draw(features, seeds=[1, 2])
    decoder.enable_model_cpu_offload(device="cpu")
    hooks = [decoder.adapter, decoder.unet, decoder.vae]
    assert all(isinstance(part._hf_hook, accelerate.hooks.CpuOffload) for part in hooks)
    assert decoder.unet._hf_hook.prev_module_hook.model is decoder.adapter
    assert decoder.vae._hf_hook.prev_module_hook.model is decoder.unet
    assert decoder.draw(features, seeds=[1, 2]) == expected
