"""A process that answers one question imports what the answer needs, and little more than torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from metamorph.decoder.adapter import FeatureAdapter
from metamorph.decoder.pipeline import VisualDecoder
from metamorph.decoder.samplers import sampler
from metamorph.model import assemble
from metamorph.model.encoder_identity import identity
from tests.tiny_run import GRID, tiny_diffusion, write_language, write_vision

# Packages that no answer needs, and those that only a compiled or a quantised model does.
NEVER = {
    "accelerate", "av", "bitsandbytes", "fastapi", "matplotlib", "pandas", "peft", "pyarrow",
    "scipy", "tensorboard", "torchao", "trackio", "uvicorn", "wandb",
}  # fmt: skip
COMPILER = {"sympy", "torch._dynamo", "torch._inductor", "triton"}
PICTURES = {"diffusers", "transformers"}
MOST = 1.3  # times as long as importing torch and answering
TRIES = 5  # other programs on the machine make single measurements meaningless

ANSWER = """
import json, sys
from metamorph.cli.command import main
code = main(sys.argv[1:])
print(json.dumps([code, sorted(sys.modules)]))
"""
DRAWING = """
import json, sys, torch
from metamorph.generation.assistant import Assistant
chat = Assistant.from_pretrained(sys.argv[1], open_when_needed=True)
[picture] = chat.draw([torch.ones(4, 24)])
print(json.dumps([picture.width - 64, sorted(sys.modules)]))
"""
TIMED = """
import sys, time
import torch
from metamorph.generation.assistant import Assistant
from metamorph.generation.messages import question
from metamorph.generation.settings import AnswerSettings
chat = Assistant.from_pretrained(sys.argv[1], open_when_needed=True)
began = time.process_time()
chat.generate([[question("hi")]], AnswerSettings(8, drawing=None))
print(time.process_time() - began)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model folder with a decoder for its encoder, as the quickstart leaves it."""
    folder = tmp_path_factory.mktemp("cold")
    parts = write_language(folder / "llama"), write_vision(folder / "siglip")
    whole, tokenizer = assemble(*parts, grid=GRID)
    whole.save_pretrained(folder / "model", tokenizer)
    vae, unet, noise = tiny_diffusion()
    adapter = FeatureAdapter(whole.encoder.width, 16, unet.config.cross_attention_dim)
    decoder = VisualDecoder(
        vae, unet, sampler("dpm++", noise.config), adapter, 2.0, 2, GRID**2, identity(whole.encoder)
    )
    decoder.save_pretrained(folder / "model/decoder")
    return folder / "model"


def run(*arguments: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # waiting threads take processor time too
    return subprocess.run(
        [sys.executable, "-c", *arguments],
        env=environment, check=True, capture_output=True, text=True, timeout=300,
    ).stdout  # fmt: skip


def modules_after(program: str, *arguments: str) -> set[str]:
    code, modules = json.loads(run(program, *arguments).splitlines()[-1])
    assert code == 0
    return {module for module in modules if module in NEVER | COMPILER | PICTURES}


def test_a_text_answer_imports_nothing_for_pictures(model, tmp_path):
    options = ["--model", str(model), "--save-to", str(tmp_path), "--max-new-tokens", "8"]
    assert modules_after(ANSWER, "generate", "hi", *options) == set()


def test_a_drawing_imports_diffusers_alone(model):
    assert modules_after(DRAWING, str(model)) & (NEVER | PICTURES) == {"diffusers"}


@pytest.mark.slow  # transformers is imported
def test_a_question_about_a_picture_imports_no_decoder(model, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    options = ["--model", str(model), "--save-to", str(tmp_path), "--max-new-tokens", "8"]
    image = ["--image", str(tmp_path / "a.png")]
    found = modules_after(ANSWER, "generate", "hi", *options, *image)
    assert "diffusers" not in found and "transformers" in found


def processor_seconds(*arguments: str) -> float:
    """Of a whole process, start and end of Python included."""
    before = os.times()
    run(*arguments)
    after = os.times()
    spent = after.children_user - before.children_user
    return spent + after.children_system - before.children_system


@pytest.mark.slow
def test_a_text_answer_takes_little_longer_than_importing_torch(model, tmp_path):
    options = ["--model", str(model), "--save-to", str(tmp_path), "--max-new-tokens", "8"]
    whole = "import sys; from metamorph.cli.command import main; sys.exit(main(sys.argv[1:]))"
    ratios = []
    for _ in range(TRIES):
        answering = float(run(TIMED, str(model)))
        importing = processor_seconds("import torch")
        seconds = processor_seconds(whole, "generate", "hi", *options)
        ratios.append(seconds / (importing + answering))
        if ratios[-1] <= MOST:
            return
    pytest.fail(f"times as long as importing torch and answering: {ratios}")
