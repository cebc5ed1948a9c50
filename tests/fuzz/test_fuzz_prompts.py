"""Files of prompts, broken: every line is read, or one sentence names one that cannot be."""

import json
from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image

from metamorph.errors import SampleError
from metamorph.generation.messages import Drawing
from metamorph.generation.picture_files import png_bytes
from metamorph.generation.prompt_files import read_prompts
from metamorph.generation.settings import AnswerSettings
from tests.fuzz.breaking import broken_json, json_bytes

TOKENS, WIDTH = 4, 24
PICTURE = {"type": "image_url", "image_url": {"url": "own.png", "detail": "auto"}}
LINES = (
    {"id": "a", "prompt": "<image> and <image>", "images": ["own.png", "own.png"]},
    {
        "prompt": "x", "image": "own.png", "seed": 3, "temperature": 0.5, "top_k": 5, "top_p": 0.5,
        "min_p": 0.1, "repetition_penalty": 1.1, "max_new_tokens": 7, "max_images": 1,
        "stop": ["a", "b"], "drawing_steps": 4, "guidance": 2.0,
        "guidance_rescale": 0.5, "guidance_interval": [0.1, 0.6], "sampler": "unipc",
    },
    {"id": 7, "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Draw."}, PICTURE]},
        {"role": "assistant", "content": [PICTURE]},
        {"role": "user", "content": "Greener."},
    ]},
)  # fmt: skip


def attack_prompts(chance: Random, folder: Path) -> str:
    lines = [json.dumps(line).encode() for line in LINES]
    broken = chance.randrange(len(lines))
    lines[broken] = json_bytes(chance, broken_json(chance, LINES[broken]))
    path = folder / f"{chance.random()}.jsonl"
    path.write_bytes(b"\n".join(lines))
    try:
        for prompt in read_prompts(path, AnswerSettings()).prompts:
            try:
                assert prompt.messages(TOKENS, WIDTH)[-1].role == "user"
            except SampleError:  # of a picture: it costs its prompt alone
                return "picture refused"
    finally:
        path.unlink()
    return "read"


@pytest.mark.slow
def test_prompts(fuzzed, tmp_path):
    features = torch.nn.functional.normalize(torch.randn(TOKENS, WIDTH), dim=-1)
    made = Drawing(features, Image.new("RGB", (8, 8)))
    (tmp_path / "own.png").write_bytes(png_bytes(made))
    fuzzed(attack_prompts, 1000)
