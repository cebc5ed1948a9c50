"""A model folder to talk to: what it refuses to load, and the limits of a conversation."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from metamorph.decoder import pipeline
from metamorph.decoder.libraries import DecoderOptions
from metamorph.decoder.pipeline import VisualDecoder
from metamorph.decoder.unopened import UnopenedDecoder, kind_of
from metamorph.errors import UserError
from metamorph.generation import AnswerSettings, question
from metamorph.generation.assistant import Assistant
from metamorph.model import assemble
from tests.tiny_run import GRID, tiny_decoder, tiny_one_pass, write_language, write_vision

WIDTH = 24  # of the features of the tiny encoder
SAFETENSORS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model folder with everything; tests change copies."""
    folder = tmp_path_factory.mktemp("chat")
    parts = write_language(folder / "llama"), write_vision(folder / "siglip")
    model, tokenizer = assemble(*parts, grid=GRID)
    model.save_pretrained(folder / "model", tokenizer)
    tiny_decoder().save_pretrained(folder / "model" / "decoder")
    return folder / "model"


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def refused(folder, **options) -> str:
    with pytest.raises(UserError) as caught:
        Assistant.from_pretrained(folder, **options)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    return str(caught.value)


def change_json(path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_it_answers_and_draws(whole):
    chat = Assistant.from_pretrained(whole)
    picture = Image.new("RGB", (30, 20), "red")
    asked = [[question("What is it?", picture)], [question("Hello")]]
    replies = chat.generate(asked, AnswerSettings(5))
    assert [reply.finish_reason in ("stop", "length") for reply in replies] == [True, True]
    features = [torch.randn(GRID**2, WIDTH)]
    assert chat.draw(features)[0].size == (64, 64)
    assert chat.draw(features)[0].tobytes() == chat.draw(features)[0].tobytes()
    assert chat.draw([]) == []
    for steps in (0, -1):
        with pytest.raises(ValueError, match="num_inference_steps: expected at least 1"):
            chat.draw(features, num_inference_steps=steps)


def test_a_picture_depends_on_its_seed_and_number_alone(whole, monkeypatch):
    chat = Assistant.from_pretrained(whole)
    started = []
    one, two, three = torch.randn(3, GRID**2, WIDTH)

    def remember(sample, timestep):
        started.append(sample.chunk(2)[0])  # twice the same, for guidance
        return sample

    monkeypatch.setattr(chat.decoder.scheduler, "scale_model_input", remember)

    def drawn(answers, *seeds):
        started.clear()
        pictures = chat.draw_batch(answers, seeds=seeds)
        return pictures, started[0]

    (both, alone), noise = drawn([[one, two], [three]], 7, 8)
    assert [len(both), len(alone)] == [2, 1]
    _, swapped = drawn([[three], [one, two]], 8, 7)
    assert torch.equal(swapped, noise[[2, 0, 1]])
    [[first]], single = drawn([[one]], 7)
    assert torch.equal(single, noise[:1])
    assert not torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[2])
    difference = np.subtract(first, both[0], dtype=int)
    assert np.abs(difference).max() <= 1  # rounding of another batch shape


def test_without_a_decoder_it_does_not_draw(folder):
    shutil.rmtree(folder / "decoder")
    chat = Assistant.from_pretrained(folder)
    assert chat.decoder is None
    with pytest.raises(UserError, match="no decoder/"):
        chat.draw([torch.randn(GRID**2, WIDTH)])


def test_prompts_and_answers_fit_the_positions_of_the_model(folder):
    change = json.loads((folder / "config.json").read_text())
    change["language"]["max_position_embeddings"] = 40
    (folder / "config.json").write_text(json.dumps(change))
    chat = Assistant.from_pretrained(folder)
    length = len(chat.reader.document([question("Hello")]))
    chat.generate([[question("Hello")]], AnswerSettings(40 - length))
    with pytest.raises(
        UserError, match=f"its {length} tokens and max_new_tokens {41 - length} .*40"
    ):
        chat.generate([[question("Hello")]], AnswerSettings(41 - length))


def test_a_length_is_refused_before_a_picture_is_encoded(whole, monkeypatch):
    chat = Assistant.from_pretrained(whole)
    monkeypatch.setattr(chat.model.encoder, "preprocess", None)
    with pytest.raises(UserError, match="exceed the context"):
        chat.generate([[question("Look.", Image.new("RGB", (8, 8)))]], AnswerSettings(10**6))


def test_placeholders_and_pictures_must_add_up():
    with pytest.raises(UserError, match="1 <image> placeholders but 0 images"):
        question("<image>What is it?")


@pytest.mark.parametrize("part", ["unet", "vae", "scheduler", "adapter", "model_index.json"])
def test_a_missing_part_of_the_decoder_is_refused(folder, part):
    path = folder / "decoder" / part
    path.unlink() if path.is_file() else shutil.rmtree(path)
    assert "decoder" in refused(folder)


def test_a_decoder_that_is_a_file_is_refused(folder):
    shutil.rmtree(folder / "decoder")
    (folder / "decoder").write_text("no folder")
    assert "decoder" in refused(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "adapter"])
def test_a_damaged_part_of_the_decoder_is_refused(folder, part):
    weights = folder / "decoder" / part / SAFETENSORS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    assert f"decoder/{part}/{SAFETENSORS}: damaged safetensors file" in refused(folder)
    weights.write_bytes(whole)
    config = folder / "decoder" / part / "config.json"
    text = config.read_text()
    config.write_text("{")
    refused(folder)
    config.write_text(text)
    change_json(config, norm_num_groups="many", hidden_width="wide")
    refused(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "adapter"])
def test_a_decoder_never_starts_from_random_weights(folder, part):
    weights = folder / "decoder" / part / SAFETENSORS
    tensors = load_file(weights)
    name = sorted(tensors)[0]
    del tensors[name]
    save_file(tensors, weights, metadata={"format": "pt"})
    assert f"{part}: its weights lack the tensor {name!r}" in refused(folder)


def test_encoder_and_decoder_wait_until_they_are_needed(whole):
    chat = Assistant.from_pretrained(whole, open_when_needed=True)
    at_once = Assistant.from_pretrained(whole)
    assert chat.model.vision is None
    picture = Image.new("RGB", (32, 16), "red")
    undrawn = AnswerSettings(5, drawing=None)
    for asked, is_opened in (question("Hello"), False), (question("What is it?", picture), True):
        [ours], [theirs] = (who.generate([[asked]], undrawn) for who in (chat, at_once))
        assert ours.text == theirs.text
        assert (chat.model.vision is not None) == is_opened
    assert chat.draw([]) == [] and isinstance(chat._decoder, UnopenedDecoder)
    features = [torch.randn(GRID**2, WIDTH)]
    [drawn], [expected] = chat.draw(features), at_once.draw(features)
    assert drawn.tobytes() == expected.tobytes()
    assert chat.decoder is chat.decoder and isinstance(chat.decoder, VisualDecoder)


@pytest.mark.parametrize("part", ["encoder", "decoder/unet", "decoder/vae", "decoder/adapter"])
def test_what_waits_is_checked_before_anything_is_answered(folder, part):
    weights = folder / part / ("model.safetensors" if part == "encoder" else SAFETENSORS)
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    assert f"{weights}: damaged" in refused(folder, open_when_needed=True)
    weights.unlink()
    assert part in refused(folder, open_when_needed=True)
    weights.write_bytes(whole)
    Assistant.from_pretrained(folder, open_when_needed=True)
    (folder / part / "config.json").write_text("{")
    assert f"{part}/config.json" in refused(folder, open_when_needed=True)


def test_what_the_files_of_a_decoder_do_not_show_is_refused_with_the_first_picture(folder):
    weights = folder / "decoder/unet" / SAFETENSORS
    tensors = load_file(weights)
    name = sorted(tensors)[0]
    del tensors[name]
    save_file(tensors, weights, metadata={"format": "pt"})
    chat = Assistant.from_pretrained(folder, open_when_needed=True)
    assert len(chat.generate([[question("Hello")]], AnswerSettings(5, drawing=None))) == 1
    with pytest.raises(UserError, match=f"unet: its weights lack the tensor {name!r}"):
        chat.draw([torch.randn(GRID**2, WIDTH)])


@pytest.mark.parametrize("part", ["unet", "vae", "adapter"])
def test_pickled_weights_are_never_opened(folder, part):
    (folder / "decoder" / part / SAFETENSORS).unlink()
    torch.save({}, folder / "decoder" / part / "diffusion_pytorch_model.bin")
    assert "a pickle, which is never opened" in refused(folder)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"_class_name": "StableDiffusionPipeline"}, "expected the pipeline VisualDecoder"),
        ({"_class_name": ["pipeline", "VisualDecoder"]}, "expected the pipeline VisualDecoder"),
        ({"unet": ["diffusers", "UNet2DModel"]}, "unet is ['diffusers', 'UNet2DModel']"),
        ({"unet": ["unet", "UNet2DConditionModel"]}, "unet is"),
        ({"vae": [None, None]}, "vae is [None, None]"),
        ({"scheduler": ["diffusers", "DDPMScheduler"]}, "scheduler is"),
        ({"adapter": ["transformers", "AutoModel"]}, "adapter is"),
        ({"sampling_steps": 0}, "sampling_steps is 0"),
        ({"sampling_steps": "20"}, "sampling_steps is '20'"),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0"),
        ({"guidance_scale": None}, "guidance_scale is None"),
    ],
)
def test_only_the_expected_classes_are_loaded(folder, change, expected, monkeypatch):
    change_json(folder / "decoder" / "model_index.json", **change)
    monkeypatch.setattr(pipeline, "load_part", None)  # refused before loading
    assert expected in refused(folder)


def test_the_classes_that_saving_writes_are_the_expected_ones(tmp_path):
    saved = tiny_decoder()
    saved.save_pretrained(tmp_path)
    loaded = VisualDecoder.from_folder(tmp_path)
    assert (loaded.config.guidance_scale, loaded.config.sampling_steps) == (2.0, 2)
    for key in ("algorithm_type", "solver_order", "beta_schedule", "num_train_timesteps"):
        assert loaded.scheduler.config[key] == saved.scheduler.config[key]
    for name in ("vae", "unet", "adapter"):
        expected, found = getattr(saved, name), getattr(loaded, name)
        assert not found.training
        for key, tensor in expected.state_dict().items():
            assert torch.equal(found.state_dict()[key], tensor), key


def test_a_decoder_of_another_width_is_refused(folder):
    shutil.rmtree(folder / "decoder")
    tiny_decoder(WIDTH + 1).save_pretrained(folder / "decoder")
    assert "features of width 25, but the model predicts them of width 24" in refused(folder)


@pytest.fixture(scope="module")
def one_pass(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_pass") / "decoder"
    tiny_one_pass().save_pretrained(folder)
    return folder


def test_a_one_pass_decoder_previews(whole, one_pass):
    options = DecoderOptions("bf16")
    chat = Assistant.from_pretrained(whole, preview_decoder=one_pass, decoder_options=options)
    assert (kind_of(chat.decoder), kind_of(chat.queue.preview)) == ("diffusion", "rae")
    assert chat.decoder.unet.dtype == chat.queue.preview.vit.dtype == torch.bfloat16


def test_without_a_decoder_nothing_of_one_can_be_chosen(folder):
    shutil.rmtree(folder / "decoder")
    assert "has no decoder/" in refused(folder, decoder_options=DecoderOptions("bf16"))
    assert Assistant.from_pretrained(folder).decoder is None


def test_what_cannot_preview(folder, one_pass, tmp_path):
    """Each sentence names the folder that was given."""

    def said(preview, **options) -> str:
        with pytest.raises(UserError) as caught:
            Assistant.from_pretrained(folder, preview_decoder=preview, **options)
        assert str(caught.value).startswith(f"{preview}")
        return str(caught.value)

    assert "needs a decoder that draws in one pass (decoder.kind: rae)" in said(folder / "decoder")
    assert "a decoder that draws in one pass itself" in said(one_pass, decoder=one_pass)
    assert "nothing" in said(tmp_path / "nothing")
    wide = tmp_path / "wide"
    tiny_one_pass(WIDTH + 1).save_pretrained(wide)
    assert "features of width 25, but the model predicts them of width 24" in said(wide)
    decoder = tiny_one_pass()
    decoder.register_to_config(encoder="0" * 64)
    decoder.save_pretrained(tmp_path / "other")
    assert "of another encoder than that of the model" in said(tmp_path / "other")
    shutil.rmtree(folder / "decoder")
    assert "the model has no decoder" in said(one_pass)


def test_a_corrupt_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").write_text("{")
    assert "tokenizer.json" in refused(folder)
