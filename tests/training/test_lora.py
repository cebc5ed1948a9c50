"""Adapters: what moves, what is saved, and that other programs can read it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from metamorph.cli.command import main
from metamorph.config import ModelConfig
from metamorph.errors import UserError
from metamorph.model.adapter_files import language_sample
from metamorph.model.opening import open_model
from metamorph.model.unified import MetaMorph
from metamorph.monitor.metrics_file import read_metrics
from metamorph.training.loop import train
from tests.processes import run_processes
from tests.tiny_run import replace_language, tiny_config, write_language, write_vision
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


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_peft_reads_the_adapters_and_merges_them_to_the_same_model(folder, model_type):
    replace_language(folder, model_type)
    merged = weights_of(train(lora_config(folder)))
    base = AutoModelForCausalLM.from_pretrained(folder / "start_llama")
    adapter = folder / "instruct" / "adapter"
    found = PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()
    for name, weight in found.items():
        torch.testing.assert_close(weight, merged["language." + name], rtol=1e-5, atol=1e-6)
    heads = load_file(adapter / "projector_and_vision_head.safetensors")
    named = [name for name in heads if name.startswith(("projector.", "vision_head."))]
    assert len(named) == 8 and all(torch.equal(merged[name], heads[name]) for name in named)
    start = MetaMorph.from_pretrained(folder / "start")
    assert torch.equal(heads["language_sample"], language_sample(start.language))


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
    assert written["target_modules"] == ["down_proj", "q_proj"]


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


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """An adapter of a run that went on from an align stage, and the folder around it."""
    folder = tmp_path_factory.mktemp("adapted")
    write_language(folder / "llama")
    write_vision(folder / "siglip")
    align = tiny_config(folder, "align", steps=2)
    config = tiny_config(folder, "instruct", steps=2, lora_rank=4)
    config.model = ModelConfig(folder=str(train(align)))
    train(config)
    return folder


def import_adapter(folder, adapter, *arguments) -> int:
    starts = [f"--language={folder / 'llama'}", f"--vision={folder / 'siglip'}"]
    return main(["import", str(adapter), str(folder / "again"), *(arguments or starts)])


def test_an_adapter_with_its_language_model_and_encoder_is_the_whole_model(adapted):
    """What align taught the rows of added tokens is in it, too."""
    assert import_adapter(adapted, adapted / "instruct" / "adapter") == 0
    whole, again = adapted / "instruct" / "model", adapted / "again"
    expected, found = weights_of(whole), weights_of(again)
    assert expected.keys() == found.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6)
    for name in ("config.json", "chat_template.jinja"):
        assert (whole / name).read_text() == (again / name).read_text()
    shutil.rmtree(again)


def spoil_alpha(adapter):
    written = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(written | {"lora_alpha": "16"}))


def spoil_rank(adapter):
    """Adapters of another rank would count half or twice as much."""
    written = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(written | {"r": 8}))


def spoil_targets(adapter):
    written = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(written | {"target_modules": ".*"}))


def spoil_way(adapter):
    written = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(written | {"use_dora": True}))


def spoil_layer(adapter):
    weights = load_file(adapter / "adapter_model.safetensors")
    renamed = {name.replace("q_proj", "p_proj"): weight for name, weight in weights.items()}
    save_file(renamed, adapter / "adapter_model.safetensors")


def spoil_shape(adapter):
    weights = load_file(adapter / "adapter_model.safetensors")
    cut = {name: weight[:, :-1].contiguous() for name, weight in weights.items()}
    save_file(cut, adapter / "adapter_model.safetensors")


def spoil_pair(adapter):
    weights = load_file(adapter / "adapter_model.safetensors")
    weights.pop(next(name for name in weights if "lora_B" in name))
    save_file(weights, adapter / "adapter_model.safetensors")


def spoil_one(adapter):
    weights = load_file(adapter / "adapter_model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "layers.1.mlp.up" not in name}
    save_file(kept, adapter / "adapter_model.safetensors")


def spoil_all(adapter):
    save_file({}, adapter / "adapter_model.safetensors")


def spoil_dtype(adapter):
    heads = load_file(adapter / "projector_and_vision_head.safetensors")
    heads["language_sample"] = heads["language_sample"].int()
    save_file(heads, adapter / "projector_and_vision_head.safetensors")


def spoil_sample(adapter):
    heads = load_file(adapter / "projector_and_vision_head.safetensors")
    heads["language_sample"] += 1
    save_file(heads, adapter / "projector_and_vision_head.safetensors")


def spoil_heads(adapter):
    heads = load_file(adapter / "projector_and_vision_head.safetensors")
    heads.pop("added_input_rows")
    save_file(heads, adapter / "projector_and_vision_head.safetensors")


def spoil_grid(adapter):
    written = json.loads((adapter / "config.json").read_text())
    written["language"]["rope_theta"] = 500.0
    (adapter / "config.json").write_text(json.dumps(written))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_alpha, "r and lora_alpha are 4 and '16', expected numbers"),
        (spoil_rank, "is (32, 4) x (4, 64), expected (32, 8) x (8, 64)"),
        (spoil_targets, "target_modules is '.*', expected a list of names of layers"),
        (spoil_way, "use_dora is True, which is not served"),
        (spoil_layer, "p_proj' is no linear layer of the model"),
        (spoil_shape, "is (32, 3) x (4, 63), expected (32, 4) x (4, 64)"),
        (spoil_pair, "expected a matrix"),
        (spoil_one, "the adapter of 'model.layers.1.mlp.up_proj' is missing"),
        (spoil_all, "adapter_model.safetensors: the adapter of 'model.layers.0.mlp.down_proj' is"),
        (spoil_dtype, "its run began with another language model than"),
        (spoil_sample, "its run began with another language model than"),
        (spoil_heads, "vision_head.safetensors: the tensor 'added_input_rows' is missing"),
        (spoil_grid, "config.json: language is"),
        (lambda adapter: (adapter / "chat_template.jinja").unlink(), "chat_template.jinja"),
    ],
)
def test_what_does_not_belong_together_is_one_sentence(adapted, tmp_path, spoil, message, capsys):
    adapter = shutil.copytree(adapted / "instruct" / "adapter", tmp_path / "adapter")
    spoil(adapter)
    assert import_adapter(adapted, adapter) == 2
    assert message in capsys.readouterr().err
    assert not (adapted / "again").exists()


def test_options_of_other_imports_are_refused(adapted, capsys):
    adapter, vision = adapted / "instruct" / "adapter", f"--vision={adapted / 'siglip'}"
    assert import_adapter(adapted, adapter, vision) == 2
    assert "is an adapter; give --language" in capsys.readouterr().err
    language = f"--language={adapted / 'llama'}"
    assert import_adapter(adapted, adapter, vision, language, "--grid=2") == 2
    assert "--grid does not apply" in capsys.readouterr().err
    assert import_adapter(adapted, adapted / "llama", vision, language) == 2
    assert "--language does not apply" in capsys.readouterr().err
