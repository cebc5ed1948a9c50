"""All that takes a frozen encoder takes one that is no SigLIP: runs, caches, answers, decoders."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from metamorph import Assistant
from metamorph.cli.command import main
from metamorph.config import RunConfig
from metamorph.config.reading import save_config
from metamorph.decoder.kinds import open_decoder
from metamorph.generation import question
from metamorph.generation.settings import AnswerSettings
from metamorph.model import MetaMorph
from metamorph.model.efficientnet_lite import EfficientNetLite
from metamorph.model.encoder_identity import identity
from metamorph.monitor.metrics_file import read_metrics
from metamorph.training.loop import train
from tests.tiny_run import (
    decoder_config,
    tiny_config,
    tiny_one_pass_config,
    write_efficientnet,
    write_language,
)


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory) -> Path:
    return write_efficientnet(tmp_path_factory.mktemp("efficientnet"))


@pytest.fixture(scope="module")
def run(encoder_folder, tmp_path_factory) -> RunConfig:
    """An instruct run of three steps that is done."""
    folder = tmp_path_factory.mktemp("run")
    write_language(folder / "llama")
    config = with_encoder(tiny_config(folder, "instruct", steps=3), encoder_folder)
    train(config)
    return config


def with_encoder(config: RunConfig, folder: Path) -> RunConfig:
    return replace(config, model=replace(config.model, vision=str(folder)))


def losses(output: str) -> torch.Tensor:
    lines = read_metrics(Path(output))
    return torch.tensor([[line["text_loss"], line["visual_cosine"]] for line in lines])


def test_a_trained_model_keeps_it_and_reads_pictures_by_it(run):
    model = MetaMorph.from_pretrained(Path(run.output) / "model")
    given = EfficientNetLite.from_pretrained(run.model.vision, run.model.grid)
    assert type(model.encoder) is EfficientNetLite and identity(model.encoder) == identity(given)
    chat = Assistant.from_pretrained(Path(run.output) / "model", open_when_needed=True)
    picture = Image.new("RGB", (30, 20), "red")
    settings = AnswerSettings(max_new_tokens=4, drawing=None)
    [reply] = chat.generate([[question("What is it?", picture)]], settings)
    assert reply.usage.answer_tokens > 0


def test_cached_features_train_as_live_ones_and_never_run_it(run, tmp_path, monkeypatch):
    cached = replace(run, output=str(tmp_path / "cached"))
    cached.data = replace(run.data, source="mixture", path=str(pictures_of(tmp_path)), kinds={})
    live = replace(cached, output=str(tmp_path / "live"))
    train(live)
    save_config(cached, tmp_path / "cached.yaml")
    features = ["--output", str(tmp_path / "features"), "--dtype", "fp32", "--device", "cpu"]
    assert main(["encode", str(tmp_path / "cached.yaml"), *features]) == 0

    def never(*_):
        raise AssertionError("the encoder was run")

    monkeypatch.setattr(EfficientNetLite, "encode", never)
    cached.data = replace(cached.data, features=str(tmp_path / "features"))
    train(cached)
    torch.testing.assert_close(losses(cached.output), losses(live.output), rtol=0, atol=1e-5)


def pictures_of(folder: Path) -> Path:
    """A mixture of captioned pictures."""
    lines = []
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (40, 30), colour).save(folder / f"{number}.png")
        said = {"human": "Generate an image of it.", "gpt": "<image>"}
        turns = [{"from": who, "value": value} for who, value in said.items()]
        lines.append(json.dumps({"image": f"{number}.png", "conversations": turns}))
    (folder / "pictures.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "mixture.yaml").write_text("all: {path: pictures.jsonl}\n")
    return folder / "mixture.yaml"


def test_a_one_pass_decoder_learns_by_its_gradient_and_is_evaluated(encoder_folder, tmp_path):
    config = with_encoder(tiny_one_pass_config(tmp_path), encoder_folder)
    losses = {"perceptual_weight": 1.0, "adversarial_weight": 0.1, "adversarial_start": 0}
    config = replace(config, decoder=replace(config.decoder, **losses))
    train(config)
    assert all(line["feature_error"] > 0 for line in read_metrics(Path(config.output)))
    decoder = Path(config.output) / "decoder"
    known = identity(EfficientNetLite.from_pretrained(encoder_folder, config.model.grid))
    assert open_decoder(decoder, torch.device("cpu")).config.encoder == known
    command = ["evaluate", "--decoder", str(decoder), "--vision", str(encoder_folder)]
    output = ["--output", str(tmp_path / "out"), "--count", "2", "--device", "cpu"]
    assert main([*command, *output]) == 0


def test_a_diffusion_decoder_is_conditioned_on_its_features(encoder_folder, tmp_path):
    config = with_encoder(decoder_config(tmp_path, steps=1), encoder_folder)
    train(config)
    decoder = open_decoder(Path(config.output) / "decoder", torch.device("cpu"))
    features = torch.nn.functional.normalize(torch.ones(1, 4, 24), dim=-1)
    [picture] = decoder(features).images
    assert picture.size == (64, 64)


@pytest.mark.parametrize("stage", ["instruct", "decoder"])
def test_a_plan_counts_its_operations(stage, run, encoder_folder, tmp_path, capsys):
    config = run if stage == "instruct" else tiny_one_pass_config(tmp_path)
    config = with_encoder(replace(config, output=str(tmp_path / "none")), encoder_folder)
    save_config(config, tmp_path / "run.yaml")
    options = ["--dry-run", "--world-size", "1"]
    assert main(["train", str(tmp_path / "run.yaml"), *options]) == 0
    encoder = EfficientNetLite.from_pretrained(encoder_folder, config.model.grid)
    count = sum(parameter.numel() for parameter in encoder.parameters())
    assert f"{count:,}" in capsys.readouterr().out
