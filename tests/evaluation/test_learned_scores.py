"""Scores by other networks: right beside their definitions, and a sentence where these are not."""

import json
import string

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from metamorph import libraries
from metamorph.errors import UserError
from metamorph.evaluation import learned_scores
from metamorph.evaluation.learned_scores import (
    INCEPTION,
    ClipScore,
    FrechetDistance,
    inception_file,
    open_frechet,
)
from tests.pillow_processors import pillow_processor

CPU = torch.device("cpu")
SIDE = 16


class Levels(nn.Module):
    """Stands for Inception: mean and spread of red over a picture of uint8."""

    num_features = 2

    def forward(self, pixels):
        assert pixels.dtype == torch.uint8
        red = pixels[:, 0].float().flatten(1)
        return torch.stack([red.mean(1), red.std(1)], 1)


def test_frechet_distance_is_that_of_two_normal_distributions():
    """Means m and covariances S: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)); of S1 = S2 the first
    term is all."""
    frechet = FrechetDistance(FrechetInceptionDistance(feature=Levels()))
    assert frechet.value() is None
    real = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.5
    real = (real * 255).round() / 255
    for part in range(0, 40, 10):
        frechet.add(real[part : part + 10] + 20 / 255, real[part : part + 10])
    assert frechet.value() == pytest.approx(20**2, rel=1e-3)


def test_two_distances_share_no_pictures():
    metric = FrechetInceptionDistance(feature=Levels())
    first, second = FrechetDistance(metric), FrechetDistance(metric)
    first.add(torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8))
    assert first.value() is not None and second.value() is None


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A random CLIP of one layer whose tokens are letters."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    ends = ["<|startoftext|>", "<|endoftext|>"]
    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    vocabulary = {token: number for number, token in enumerate([*letters, *ends])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2, "projection_dim": 8}
    start, end = len(letters), len(letters) + 1
    text = small | {"vocab_size": len(vocabulary), "max_position_embeddings": 12}
    text |= {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    vision = small | {"image_size": SIDE, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(
        folder
    )
    pillow_processor("CLIP")(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    ).save_pretrained(folder)
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_the_clip_score_is_the_cosine_of_both_projections(clip):
    model = CLIPModel.from_pretrained(clip).eval()
    numbers = torch.randint(0, 256, (3, SIDE, SIDE, 3), generator=torch.Generator().manual_seed(0))
    pictures = [Image.fromarray(picture.byte().numpy()) for picture in numbers]
    captions = ["red", "a blue cat", "a caption of many more letters than it has positions for"]
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])  # those of every CLIP of OpenAI
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = ((numbers / 255 - mean) / deviation).permute(0, 3, 1, 2)
    images = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    expected = []
    tokenizer = CLIPTokenizer.from_pretrained(clip)
    for caption, image in zip(captions, images, strict=True):  # alone, so without padding
        tokens = tokenizer(caption, truncation=True, max_length=12, return_tensors="pt")
        said = model.text_projection(model.text_model(**tokens).pooler_output)[0]
        expected.append(100 * max(float(torch.cosine_similarity(image, said, dim=0)), 0))
    assert any(expected)
    assert ClipScore(clip, CPU)(pictures, captions) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json"])
def test_a_clip_that_lacks_a_file_is_a_sentence(clip, tmp_path, name):
    for path in clip.iterdir():
        if path.name != name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=f"^--clip: .*({name}|cannot be opened)"):
        ClipScore(tmp_path, CPU)


def test_weights_of_something_else_are_never_filled_up_with_random_ones(clip, tmp_path):
    for path in clip.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(clip / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="^--clip: .* lack the tensor 'visual_projection.weight'"):
        ClipScore(tmp_path, CPU)
    config = json.loads((clip / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "siglip"}))
    with pytest.raises(UserError, match="^--clip: .* is of model_type 'siglip', expected 'clip'"):
        ClipScore(tmp_path, CPU)


def test_a_pickle_is_no_clip(clip, tmp_path):
    for path in clip.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(CLIPModel.from_pretrained(clip).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="^--clip: .* cannot be opened: "):
        ClipScore(tmp_path, CPU)


def test_fid_without_torch_fidelity_is_a_sentence():
    if libraries.torch_fidelity_absence("cpu") is None:
        pytest.skip("torch-fidelity is installed")
    path, why = inception_file(None)
    assert path is None and why.startswith("FID was not measured: it needs torch-fidelity")


def test_fid_without_weights_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(learned_scores, "torch_fidelity_absence", lambda device: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path, why = inception_file(None)
    assert path is None and str(tmp_path) in why and "nothing is downloaded unasked" in why
    with pytest.raises(UserError, match="gone.pth"):
        inception_file(tmp_path / "gone.pth")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / INCEPTION).touch()
    assert inception_file(None) == (tmp_path / "checkpoints" / INCEPTION, "")
    assert inception_file(tmp_path / "checkpoints" / INCEPTION)[0] is not None


class Bad:
    """What a pickle can do: it is called as soon as the pickle is read."""

    def __reduce__(self):
        return pytest.fail, ("the pickle was run",)


@pytest.mark.parametrize("content", [Bad(), {"weight": torch.ones(2)}])
def test_other_files_are_no_weights_of_inception_and_no_pickle_is_run(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="these are not the weights of Inception for FID"):
        open_frechet(tmp_path / "weights.pth", CPU)
