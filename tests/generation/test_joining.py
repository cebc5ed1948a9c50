"""A model and a decoder of two runs become one folder that draws, or a sentence says why not."""

import errno
import json
import os
import shutil

import pytest
import torch

from metamorph.cli.command import main
from metamorph.decoder.adapter import FeatureAdapter
from metamorph.decoder.pipeline import VisualDecoder
from metamorph.decoder.samplers import sampler
from metamorph.errors import UserError
from metamorph.generation.assistant import Assistant
from metamorph.generation.joining import join
from metamorph.model import assemble
from metamorph.model.encoder_identity import identity
from tests.tiny_run import GRID, tiny_diffusion, tiny_one_pass, write_language, write_vision

WIDTH = 24  # of the features of the tiny encoder


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A model without decoder and a decoder, as two runs leave them; tests change copies."""
    folder = tmp_path_factory.mktemp("parts")
    inputs = write_language(folder / "llama"), write_vision(folder / "siglip")
    model, tokenizer = assemble(*inputs, grid=GRID)
    model.save_pretrained(folder / "run" / "model", tokenizer)
    vae, unet, noise_scheduler = tiny_diffusion()
    decoder = VisualDecoder(
        vae, unet, sampler("dpm++", noise_scheduler.config), FeatureAdapter(WIDTH, 16, 12), 2.0, 2,
        GRID**2, identity(model.encoder),
    )  # fmt: skip
    decoder.save_pretrained(folder / "drawing" / "decoder")
    return folder


@pytest.fixture
def folders(parts, tmp_path):
    """(model, decoder, output)"""
    shutil.copytree(parts / "run", tmp_path / "run")
    shutil.copytree(parts / "drawing", tmp_path / "drawing")
    return tmp_path / "run/model", tmp_path / "drawing/decoder", tmp_path / "both"


def refused(model, decoder, output) -> str:
    with pytest.raises(UserError) as caught:
        join(model, decoder, output)
    assert not output.exists() and not list(output.parent.glob(".*"))
    return str(caught.value)


def change_json(path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_joined_folder_draws_what_the_two_draw(folders, capsys):
    model, decoder, output = folders
    command = ["join", str(model), "--decoder", str(decoder), "--output", str(output)]
    assert main(command) == 0 and capsys.readouterr().out == f"saved {output}\n"
    assert files(output) == files(model) | {f"decoder/{name}" for name in files(decoder)}
    features = [torch.randn(GRID**2, WIDTH)]
    apart = Assistant.from_pretrained(model, decoder=decoder).draw(features)
    shutil.rmtree(model.parent), shutil.rmtree(decoder.parent)  # it stands alone
    joined = Assistant.from_pretrained(output).draw(features)
    assert joined[0].tobytes() == apart[0].tobytes()
    assert main(["generate", "hi", "--model", str(output), "--max-new-tokens", "2"]) == 0


def test_weights_take_no_more_room_and_settings_are_copies(folders):
    model, decoder, output = folders
    join(model, decoder, output)
    for name in files(output):
        links = (output / name).stat().st_nlink
        assert links == (2 if name.endswith(".safetensors") else 1), name


def test_weights_are_copied_where_nothing_can_be_linked(folders, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    model, decoder, output = folders
    join(model, decoder, output)
    assert (output / "model.safetensors").stat().st_nlink == 1
    assert Assistant.from_pretrained(output).decoder is not None


def test_only_weights_and_settings_are_taken_and_links_are_followed(folders):
    model, decoder, output = folders
    for name in ("training_args.bin", ".cache.json", "notes.md", "pytorch_model.pt"):
        (model / name).write_text("{}")
        (decoder / "unet" / name).write_text("{}")
    (decoder / "pipeline.py").write_text("raise SystemExit")
    (decoder / "unet/other.py").touch()
    (model / "checkpoints").mkdir()
    weights = model / "model.safetensors"
    weights.rename(model.parent / "blob")  # as a folder of Hugging Face's cache has it
    weights.symlink_to("../blob")
    join(model, decoder, output)
    assert {path.suffix for path in output.rglob("*") if path.is_file()} == {
        ".json",
        ".jinja",
        ".py",  # of the pipeline, for diffusers; written anew, whatever the folder had
        ".safetensors",
    }
    code = {path.name for path in output.rglob("*.py")}
    assert code == {
        "pipeline.py",
        "denoising.py",
        "folder_code.py",
        "samplers.py",
        "metamorph.decoder.adapter.py",
    }
    assert "class VisualDecoder" in (output / "decoder/pipeline.py").read_text()
    assert not (output / "model.safetensors").is_symlink()
    assert {path.name for path in output.iterdir() if path.is_dir()} == {"decoder", "encoder"}


def test_a_decoder_that_draws_in_one_pass_brings_its_own_code(folders):
    model, decoder, output = folders
    tiny_one_pass().save_pretrained(decoder.parent / "rae")
    expected = {p.name: p.read_text() for p in (decoder.parent / "rae").rglob("*.py")}
    (decoder.parent / "rae/pipeline.py").write_text("raise SystemExit")
    join(model, decoder.parent / "rae", output)
    assert {p.name: p.read_text() for p in output.rglob("*.py")} == expected


def test_a_decoder_that_was_there_is_replaced_in_the_copy_alone(folders):
    model, decoder, output = folders
    shutil.copytree(decoder, model / "decoder")
    change_json(decoder / "model_index.json", guidance_scale=7.0)
    join(model, decoder, output)
    scales = [Assistant.from_pretrained(f).decoder.config.guidance_scale for f in (model, output)]
    assert scales == [2.0, 7.0]
    other = Assistant.from_pretrained(model, decoder=decoder)
    assert other.decoder.config.guidance_scale == 7.0


@pytest.mark.parametrize(
    ("file", "changes", "expected"),
    [
        ("model_index.json", {"tokens_per_image": 9},
         "features in pictures of 9 tokens, but the model predicts them in pictures of 4 tokens"),
        ("model_index.json", {"encoder": "0" * 64}, "features of another encoder than that of the"),
        ("model_index.json", {"encoder": 7}, "encoder is 7, expected str"),
        ("model_index.json", {"tokens_per_image": "4"}, "tokens_per_image is '4', expected int"),
        ("adapter/config.json", {"condition_width": 16},
         "conditions of width 16, but cross_attention_dim of its UNet is 12"),
        ("unet/config.json", {"cross_attention_dim": 16},
         "conditions of width 12, but cross_attention_dim of its UNet is 16"),
    ],
)  # fmt: skip
def test_a_decoder_of_other_features_is_refused(folders, file, changes, expected):
    model, decoder, output = folders
    change_json(decoder / file, **changes)
    message = refused(model, decoder, output)
    assert expected in message and str(decoder) in message


def test_an_encoder_that_normalises_otherwise_is_refused(folders):
    model, decoder, output = folders
    change_json(model / "encoder/preprocessor_config.json", image_mean=[0.4, 0.5, 0.5])
    assert "another normalisation" in refused(model, decoder, output)
    with pytest.raises(UserError, match="another normalisation"):
        Assistant.from_pretrained(model, decoder=decoder)
    change_json(decoder / "model_index.json", encoder=None)  # of an earlier version
    join(model, decoder, output)


def test_folders_that_are_not_meant_are_named(folders):
    model, decoder, output = folders
    assert refused(model, decoder.parent, output) == (
        f"{decoder.parent} is the folder of a run, whose decoder is {decoder}"
    )
    assert "does not exist" in refused(model, decoder / "gone", output)
    assert "hf download a/b" in refused("a/b", decoder, output)
    (model / "tokenizer.json").unlink()
    assert "tokenizer.json: no such file" in refused(model, decoder, output)


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(folders, capsys, monkeypatch):
    model, decoder, output = folders
    command = ["join", str(model), "--decoder", str(decoder), "--output", str(model)]
    assert main(command) == 2
    assert capsys.readouterr().err.startswith(f"metamorph: {model} exists")

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        join(model, decoder, output)
    assert not output.exists() and not list(output.parent.glob(".*"))
