"""A MetaMorph folder in transformers' Auto classes, and back."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

from metamorph import MetaMorph, register_with_transformers
from metamorph.errors import UserError
from metamorph.generation.assistant import Assistant
from metamorph.generation.messages import question
from metamorph.generation.settings import AnswerSettings
from metamorph.model import LanguageConfig, MetaMorphConfig
from metamorph.model.language_families import FAMILIES
from metamorph.model.opening import assemble
from metamorph.model.weights import write_json
from metamorph_kernels import key_intervals
from tests.tiny_run import GRID, write_language, write_vision

TOKENS = GRID**2
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def write_model(folder: Path, model_type: str = "llama") -> Path:
    """A random model whose answers depend on all that they should depend on."""
    register_with_transformers()
    parts = write_language(folder / "parts", model_type=model_type), write_vision(folder / "siglip")
    model, tokenizer = assemble(*parts, grid=GRID)
    for name, parameter in model.named_parameters():
        if not name.startswith("vision.") and (parameter.ndim == 2 or name.endswith("proj.bias")):
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder / "model", tokenizer)
    return folder / "model"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("transformers"))


@pytest.fixture(scope="module")
def ours(folder):
    return MetaMorph.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def theirs(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def rows(config, images: list[int]) -> torch.Tensor:
    """Token ids [B, T] with so many images in each row, one after another, and padding at the
    end."""
    start, end = config.image_start_id, config.image_end_id
    image = [start, *[start] * TOKENS, end]
    written = [[5, 6, *image * count, 7 + row, 8] for row, count in enumerate(images)]
    longest = max(map(len, written))
    return torch.tensor([row + [config.pad_id] * (longest - len(row)) for row in written])


@torch.no_grad()
def our_logits(model: MetaMorph, token_ids: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Logits [T, V] of one row [T], by the model's own forward."""
    start = model.config.image_start_id
    ids = token_ids.tolist()
    places = [at for at in range(1, len(ids)) if ids[at] == ids[at - 1] == start]
    states = model(
        token_ids,
        torch.arange(len(ids)),
        key_intervals([len(ids)]),
        model.encoder(pixels),
        torch.tensor(places, dtype=torch.int64),
    )
    return model.language.head(states)


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText])
def test_every_auto_class_opens_the_folder(folder, auto):
    config = AutoConfig.from_pretrained(folder)
    assert (config.model_type, config.grid, config.language.hidden_size) == ("metamorph", GRID, 32)
    model, report = auto.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == "MetaMorphForCausalLM"
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_logits_are_those_of_our_forward(ours, theirs):
    torch.manual_seed(1)
    images = [2, 0, 1]
    token_ids, pixels = rows(ours.config, images), torch.randn(3, 3, 64, 64)
    real = (token_ids != ours.config.pad_id).long()
    with torch.no_grad():
        logits = theirs(token_ids, pixels, attention_mask=real).logits
    for row, own in enumerate(pixels.split(images)):
        length = int(real[row].sum())
        expected = our_logits(ours, token_ids[row, :length], own)
        torch.testing.assert_close(logits[row, :length], expected, **CLOSE)
    moved = theirs(token_ids, pixels.flip(0), attention_mask=real).logits
    assert not torch.allclose(moved[0], logits[0], atol=1e-3)


@pytest.mark.parametrize("model_type", ["mistral", "qwen2", "qwen3"])
def test_other_language_models_are_those_of_transformers(tmp_path, model_type):
    """Their logits are ours, and what is saved opens here again."""
    ours = MetaMorph.from_pretrained(write_model(tmp_path, model_type)).eval()
    model, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.model.config.model_type == model_type
    token_ids, pixels = rows(ours.config, [1]), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        logits = model.eval()(token_ids, pixels).logits[0]
        torch.testing.assert_close(logits, our_logits(ours, token_ids[0], pixels), **CLOSE)
    model.save_pretrained(tmp_path / "again")
    assert MetaMorph.from_pretrained(tmp_path / "again").config == ours.config


@pytest.mark.parametrize("hidden_size", [4096, 32])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_sizes_that_transformers_takes_by_default_are_written_too(
    tmp_path, model_type, hidden_size
):
    """Those of Llama 3.1 8B and Qwen3 8B among them."""
    language = LanguageConfig(
        hidden_size=hidden_size, intermediate_size=22016, num_hidden_layers=32, vocab_size=32000,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128, model_type=model_type,
    )  # fmt: skip
    config = MetaMorphConfig(language, 24, GRID, 1, 2, [3], 0)
    write_json(tmp_path / "config.json", config.to_dict())
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    assert MetaMorphConfig.read(tmp_path / "again") == config


@pytest.mark.parametrize("tied", [False, True])
def test_what_transformers_saves_opens_everywhere(ours, tmp_path, tied):
    """Also with one matrix for input and output, and as a trainer leaves its config."""
    config = deepcopy(ours.config)
    config.language.tie_word_embeddings = tied
    start = MetaMorph(config, vision=ours.vision)
    start.save_pretrained(tmp_path / "ours")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    model.config.use_cache = False
    model.save_pretrained(tmp_path / "theirs")
    again = MetaMorph.from_pretrained(tmp_path / "theirs")
    assert again.config == MetaMorph.from_pretrained(tmp_path / "ours").config
    expected = start.state_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(again.state_dict()[name], expected[name]) for name in expected)
    written = json.loads((tmp_path / "theirs/config.json").read_text())
    assert written["architectures"] == ["MetaMorphForCausalLM"]
    AutoModel.from_pretrained(tmp_path / "theirs")


def test_dtype_is_that_of_the_file_or_the_one_asked_for(folder, theirs):
    assert {p.dtype for p in theirs.parameters()} == {torch.float32}
    half = AutoModel.from_pretrained(folder, dtype="bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_writes_our_greedy_text(folder, theirs, use_cache):
    """With pictures, in batches of other rows, with a cache or without one."""
    chat = Assistant.from_pretrained(folder)
    picture = Image.effect_mandelbrot((64, 64), (-2, -1, 1, 1), 20)
    turns = [[question("what is this?", picture)], [question("hello")]]
    settings = AnswerSettings(max_new_tokens=12, max_images=0, drawing=None)
    expected = [reply.text for reply in chat.generate(turns, settings)]
    assert len(set(expected)) == 2 and all(expected)

    prompts = [chat.reader.document(turn).token_ids for turn in turns]
    longest = max(map(len, prompts))
    pad = theirs.config.pad_id
    token_ids = torch.tensor([[pad] * (longest - len(row)) + row for row in prompts])
    out = theirs.generate(
        input_ids=token_ids,
        attention_mask=(token_ids != pad).long(),
        pixel_values=chat.model.encoder.preprocess([picture]),
        max_new_tokens=12,
        do_sample=False,
        use_cache=use_cache,
    )
    assert [chat.encoder.decode(row[longest:].tolist()) for row in out] == expected


def test_beams_keep_the_images_of_their_row(ours, theirs):
    pixels, token_ids = torch.randn(3, 3, 64, 64), rows(ours.config, [2, 1])
    ids, more = theirs._expand_inputs_for_generation(2, input_ids=token_ids, pixel_values=pixels)
    assert torch.equal(ids, token_ids[[0, 0, 1, 1]])
    assert torch.equal(more["pixel_values"], pixels[[0, 1, 0, 1, 2, 2]])


def test_loss_is_of_text_alone(ours, theirs):
    token_ids, pixels = rows(ours.config, [1]), torch.randn(1, 3, 64, 64)
    out = theirs(token_ids, pixels, labels=token_ids)
    labels = token_ids.clone()
    labels[0, 3 : 3 + TOKENS] = -100
    expected = torch.nn.functional.cross_entropy(out.logits[0, :-1], labels[0, 1:])
    torch.testing.assert_close(out.loss, expected)
    out.loss.backward()
    assert theirs.projector.linear_1.weight.grad.norm() > 0
    theirs.zero_grad()


def test_pictures_without_places_are_refused(ours, theirs):
    with pytest.raises(ValueError, match="2 images have 8 tokens, but input_ids has places for 4"):
        theirs(rows(ours.config, [1]), torch.randn(2, 3, 64, 64))


def test_a_config_that_does_not_fit_is_refused(folder):
    with pytest.raises(UserError, match="grid: expected at least 1, got 0"):
        AutoModel.from_config(AutoConfig.from_pretrained(folder, grid=0))
