"""Weights go out under Hugging Face's or the official names, and come back as they were."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from metamorph.cli.command import main
from metamorph.errors import UserError
from metamorph.model.language_families import FAMILIES
from metamorph.model.official_names import import_model, official_name, our_name
from metamorph.model.opening import assemble
from metamorph.model.unified import MetaMorph
from metamorph.model.weights import read_json, write_json
from tests.tiny_run import GRID, write_language, write_vision

every_family = pytest.mark.parametrize("model", FAMILIES, indirect=True)


@pytest.fixture
def model(tmp_path, request):
    write_language(tmp_path / "llama", model_type=getattr(request, "param", "llama"))
    write_vision(tmp_path / "siglip")
    model, tokenizer = assemble(tmp_path / "llama", tmp_path / "siglip", grid=GRID)
    model.save_pretrained(tmp_path / "model", tokenizer)
    return model


def test_names_are_those_of_the_release():
    pairs = {
        "projector.linear_1.weight": "model.mm_projector.0.weight",
        "projector.linear_2.bias": "model.mm_projector.2.bias",
        "vision_head.linear_1.bias": "vision_head.0.bias",
        "vision_head.linear_2.weight": "vision_head.2.weight",
        "model.layers.3.self_attn.q_proj.weight": "model.layers.3.self_attn.q_proj.weight",
        "lm_head.weight": "lm_head.weight",
    }
    for ours, official in pairs.items():
        assert official_name(ours) == official
        assert our_name(official) == our_name(ours) == ours


@every_family
@pytest.mark.parametrize("form", ["hf", "official"])
def test_an_exported_model_comes_back_the_same(model, tmp_path, form, capsys):
    out, back = str(tmp_path / "out"), str(tmp_path / "back")
    assert main(["export", str(tmp_path / "model"), out, "--format", form]) == 0
    names = set(load_file(tmp_path / "out" / "model.safetensors"))
    assert ("model.mm_projector.0.weight" in names) == (form == "official")
    vision = ["--vision", str(tmp_path / "siglip"), "--grid", str(GRID)]
    assert main(["import", out, back, *vision]) == 0
    found = MetaMorph.from_pretrained(back)
    assert found.config == model.config
    for name, expected in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], expected), name
    assert main(["export", str(tmp_path / "model"), out]) == 2
    assert "exists, expected a new or an empty folder" in capsys.readouterr().err


@every_family
def test_transformers_finds_a_language_model_in_what_was_exported(model, tmp_path):
    main(["export", str(tmp_path / "model"), str(tmp_path / "out")])
    found, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(found).__name__ == model.config.language.family.architecture
    assert not report["missing_keys"] and not report["mismatched_keys"]
    unexpected = {name.split(".")[0] for name in report["unexpected_keys"]}
    assert unexpected == {"projector", "vision_head"}
    for name, expected in model.language.state_dict().items():
        assert torch.equal(found.state_dict()[name], expected), name


def released(tmp_path):
    """An official folder as it may appear: another model_type, and what nothing computes with."""
    main(["export", str(tmp_path / "model"), str(tmp_path / "out"), "--format", "official"])
    path = tmp_path / "out" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.vision_proj.weight"] = torch.ones(2, 2)
    tensors["model.vision_tower.vision_tower.embeddings.weight"] = torch.ones(2, 2)
    config = read_json(tmp_path / "out" / "config.json")
    write_json(tmp_path / "out" / "config.json", config | {"model_type": "metamorph_llama"})
    return path, tensors


def test_what_the_release_holds_beside_the_model_is_left_out(model, tmp_path):
    path, tensors = released(tmp_path)
    save_file(tensors, path)
    found, _ = import_model(tmp_path / "out", tmp_path / "siglip", grid=GRID)
    assert torch.equal(found.projector.linear_2.weight, model.projector.linear_2.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_head.0.weight": None}, "it holds no vision_head"),
        ({"vision_head.2.bias": torch.ones(3)}, "'vision_head.linear_2.bias' has shape"),
        ({"model.surprise": torch.ones(3)}, "belongs to no part of the model"),
    ],
)
def test_weights_that_do_not_fit_are_named(model, tmp_path, change, message):
    path, tensors = released(tmp_path)
    save_file({n: t for n, t in (tensors | change).items() if t is not None}, path)
    with pytest.raises(UserError, match=message):
        import_model(tmp_path / "out", tmp_path / "siglip", grid=GRID)


def test_a_setting_that_does_not_fit_is_named_with_its_file(model, tmp_path):
    main(["export", str(tmp_path / "model"), str(tmp_path / "out"), "--format", "official"])
    config = read_json(tmp_path / "out" / "config.json")
    write_json(tmp_path / "out" / "config.json", config | {"prompt_images": "sideways"})
    with pytest.raises(UserError, match="out/config.json: prompt_images: expected causal or"):
        import_model(tmp_path / "out", tmp_path / "siglip", grid=GRID)
