"""Adapters: what moves, what is saved, and that other programs can read it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from metamorph.config import ModelConfig
from metamorph.errors import UserError
from metamorph.model.opening import open_model
from metamorph.model.unified import MetaMorph
from metamorph.monitor.metrics_file import read_metrics
from metamorph.training.loop import train
from tests.processes import run_processes
from tests.tiny_run import tiny_config
from tests.training.test_parallel import train_and_record


def weights_of(folder) -> dict:
    return MetaMorph.from_pretrained(folder).state_dict()


def lora_config(folder, steps=3, rows=1):
    """A run with adapters from a model folder, whose Llama another program can read."""
    config = tiny_config(folder, "instruct", steps=steps, rows_per_step=rows, lora_rank=4)
    if not (folder / "start").exists():
        model, tokenizer = open_model(config)
        model.save_pretrained(folder / "start", tokenizer)
        model.language.save_pretrained(folder / "start_llama")
    config.model = ModelConfig(folder=str(folder / "start"))
    return config


def test_a_run_moves_projected_layers_and_both_heads_only(folder):
    config = lora_config(folder)
    before, after = weights_of(folder / "start"), weights_of(train(config))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert len([n for n in moved if n.endswith("_proj.weight") and ".layers." in n]) == 14
    rest = {name for name in moved if ".layers." not in name}
    assert len(rest) == 8 and all(n.startswith(("projector.", "vision_head.")) for n in rest)


def test_peft_reads_the_adapters_and_merges_them_to_the_same_model(folder):
    merged = weights_of(train(lora_config(folder)))
    base = LlamaForCausalLM.from_pretrained(folder / "start_llama")
    adapter = folder / "instruct" / "adapter"
    found = PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()
    for name, weight in found.items():
        torch.testing.assert_close(weight, merged["language." + name], rtol=1e-5, atol=1e-6)
    heads = load_file(adapter / "projector_and_vision_head.safetensors")
    assert len(heads) == 8 and all(torch.equal(merged[name], heads[name]) for name in heads)


def test_two_processes_train_the_same_adapters_and_resume(folder):
    config = lora_config(folder, rows=2)
    one = weights_of(train(config))
    other = replace(config, output=str(folder / "two"))
    run_processes(2, train_and_record, other, 2, 1)
    run_processes(2, train, replace(other, resume=True))
    for name, weight in weights_of(folder / "two" / "model").items():
        torch.testing.assert_close(weight, one[name], rtol=1e-3, atol=1e-4)
    losses = [[line["text_loss"] for line in read_metrics(Path(c.output))] for c in (config, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"stage": "align"}, "stage align does not use it"), ({}, "fp32 or bf16, got fp8")],
)
def test_what_adapters_cannot_do_is_named(folder, change, message):
    config = replace(lora_config(folder), **change)
    config.training.precision = "fp32" if change else "fp8"
    config.training.fp8_backend = "native"
    with pytest.raises(UserError, match=f"training.lora_rank: .*{message}"):
        train(config)
