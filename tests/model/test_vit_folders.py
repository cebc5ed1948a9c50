"""All that takes an encoder's folder takes each kind of vision transformer: runs, model folders,
caches, plans, transformers' processor."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from metamorph.cli.command import main
from metamorph.config import ModelConfig
from metamorph.config.reading import save_config
from metamorph.data.features import FeatureFolder
from metamorph.integrations.transformers.processing import MetaMorphProcessor
from metamorph.model import MetaMorph, assemble, open_vision
from metamorph.model.encoder_identity import identity, stored_identity
from metamorph.model.encoder_kinds import DINOV3
from metamorph.model.encoders import vision_of_sizes
from metamorph.model.outline import outline, outline_encoder, public_sizes
from metamorph.monitor.metrics_file import read_metrics
from metamorph.training.loop import train
from tests.model.tiny_encoders import FAMILIES, served, where_served
from tests.tiny_run import GRID, tiny_config, write_language

KINDS = list(map(served, ["SigLIP 2 NaFlex", "CLIP", "DINOv2", "DINOv3"]))


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return write_language(tmp_path_factory.mktemp("llama"))


@pytest.fixture(params=KINDS)
def encoder_folder(request, tmp_path) -> Path:
    return FAMILIES[request.param].write(tmp_path / "encoder")


def picture() -> Image.Image:
    return Image.effect_mandelbrot((61, 33), (-2, -1, 1, 1), 50).convert("RGB")


def test_a_model_folder_keeps_it(llama, encoder_folder, tmp_path):
    model, tokenizer = assemble(llama, encoder_folder, grid=GRID)
    model.save_pretrained(tmp_path / "model", tokenizer)
    given = open_vision(encoder_folder, GRID)
    again = MetaMorph.from_pretrained(tmp_path / "model", open_vision=False)
    assert stored_identity(tmp_path / "model" / "encoder", GRID) == identity(given)
    assert type(again.encoder) is type(given) and identity(again.encoder) == identity(given)
    pixels = given.preprocess([picture()])
    torch.testing.assert_close(again.encoder(pixels), given(pixels), atol=1e-6, rtol=0)
    processor = MetaMorphProcessor.from_pretrained(tmp_path / "model")
    said = [{"role": "user", "content": [{"type": "image", "image": picture()}]}]
    inputs = processor.apply_chat_template(
        said, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert torch.equal(inputs["pixel_values"], pixels)


def test_a_plan_is_of_what_will_run(llama, encoder_folder, tmp_path):
    start = ModelConfig(language=str(llama), vision=str(encoder_folder), grid=GRID)
    encoder = open_vision(encoder_folder, GRID)
    planned, sources = outline(start)
    assert planned.encoder.operations() == encoder.operations()
    assert planned.encoder.image_size == encoder.image_size
    assert sources == [
        f"sizes of model.language, {llama}",
        f"sizes of model.vision, {encoder_folder}",
    ]
    assert outline_encoder(start)[0].operations() == encoder.operations()
    model, tokenizer = assemble(llama, encoder_folder, grid=GRID)
    model.save_pretrained(tmp_path / "model", tokenizer)
    planned, _ = outline(ModelConfig(folder=str(tmp_path / "model")))
    assert planned.encoder.operations() == encoder.operations()


def test_its_features_are_cached(encoder_folder, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    picture().save(pictures / "one.png")
    model = ["--model.vision", str(encoder_folder), "--model.grid", str(GRID)]
    output = ["--output", str(tmp_path / "features"), "--dtype", "fp32", "--device", "cpu"]
    assert main(["encode", str(pictures), *model, *output]) == 0
    key = hashlib.sha256((pictures / "one.png").read_bytes()).digest()
    cached = FeatureFolder(tmp_path / "features").read([key])
    encoder = open_vision(encoder_folder, GRID)
    live = encoder(encoder.preprocess([picture()]))
    torch.testing.assert_close(cached, live, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", [served("DINOv3")])
def test_a_run_learns_from_it(llama, kind, tmp_path):
    shutil.copytree(llama, tmp_path / "llama")
    config = tiny_config(tmp_path, "instruct", steps=1)
    folder = FAMILIES[kind].write(tmp_path / "encoder")
    config = replace(config, model=replace(config.model, vision=str(folder)))
    train(config)
    (line,) = read_metrics(Path(config.output))
    assert 0 < abs(line["visual_cosine"]) < 1
    kept = stored_identity(Path(config.output) / "model" / "encoder", GRID)
    assert kept == identity(open_vision(folder, GRID))
    save_config(config, tmp_path / "run.yaml")
    options = ["--dry-run", "--world-size", "1", "--output", str(tmp_path / "none")]
    assert main(["train", str(tmp_path / "run.yaml"), *options]) == 0


@pytest.mark.parametrize(
    ("name", "parameters", "patches"),
    [
        ("siglip2-so400m-patch14-384", 428_225_600, 27**2),
        ("siglip2-so400m-patch16-naflex", 427_888_064, 16**2),
        ("clip-vit-large-patch14-336", 303_507_456, 24**2),
        pytest.param(
            *("dinov3-vitl16-pretrain-lvd1689m", 303_129_600, 14**2), marks=where_served(DINOV3)
        ),
    ],
)
def test_public_sizes(name, parameters, patches):
    with torch.device("meta"):
        encoder = vision_of_sizes(public_sizes("model.vision", f"models/{name}"), 8)
    assert encoder.patches == patches
    assert sum(parameter.numel() for parameter in encoder.parameters()) == parameters
