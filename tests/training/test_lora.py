"""Adapters: what moves, what is saved, and that other programs can read it."""

import json
import shutil
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

Q_PROJ = "language.model.layers.0.self_attn.q_proj.weight"


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


def test_adapters_stand_on_the_layers_that_were_asked_for(folder):
    config = lora_config(folder)
    config.training.lora_targets = ["q", "down"]
    before, after = weights_of(folder / "start"), weights_of(train(config))
    moved = {name for name in before if ".layers." in name}
    moved = {name.split(".")[-2] for name in moved if not torch.equal(before[name], after[name])}
    assert moved == {"q_proj", "down_proj"}
    written = json.loads((folder / "instruct" / "adapter" / "adapter_config.json").read_text())
    assert set(written["target_modules"]) == {"q_proj", "down_proj"}


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_dropout_trains_the_same_way_recomputed_or_resumed(folder, checkpointing):
    """A block that is computed again leaves out what it left out before, and so does a run."""
    config = lora_config(folder)
    without = weights_of(train(replace(config, output=str(folder / "without"))))
    config.training.lora_dropout = 0.5
    whole = weights_of(train(replace(config, output=str(folder / "whole"))))
    assert not torch.equal(without[Q_PROJ], whole[Q_PROJ])

    config.training.activation_checkpointing = checkpointing
    config.training.checkpoint_every, config.training.keep_checkpoints = 2, 9
    again = replace(config, output=str(folder / checkpointing))
    train(again)
    shutil.rmtree(folder / checkpointing / "checkpoints" / "step-000003")
    resumed = weights_of(train(replace(again, resume=True)))
    for name, weight in resumed.items():
        torch.testing.assert_close(weight, whole[name], rtol=1e-5, atol=1e-6)


def test_an_adapter_of_one_layer_can_be_merged_by_peft(folder):
    config = lora_config(folder)
    config.training.lora_targets, config.training.lora_dropout = ["v"], 0.25
    merged = weights_of(train(config))
    base = LlamaForCausalLM.from_pretrained(folder / "start_llama")
    found = PeftModel.from_pretrained(base, folder / "instruct" / "adapter").merge_and_unload()
    for name, weight in found.state_dict().items():
        torch.testing.assert_close(weight, merged["language." + name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("key", "value"), [("lora_alpha", 8.0), ("lora_targets", ["q"]), ("lora_dropout", 0.1)]
)
def test_a_key_of_adapters_needs_adapters(folder, key, value):
    config = tiny_config(folder, "instruct", **{key: value})
    with pytest.raises(UserError, match=f"training.{key}: it needs training.lora_rank above 0"):
        train(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage": "align"}, "training.lora_rank: stage align does not use it"),
        ({}, "training.fp8_backend: native cannot train training.lora_rank: .* fp32 or bf16"),
    ],
)
def test_what_adapters_cannot_do_is_named(folder, change, message):
    config = replace(lora_config(folder), **change)
    config.training.precision = "fp32" if change else "fp8"
    config.training.fp8_backend = "native"
    with pytest.raises(UserError, match=message):
        train(config)
