"""The model `metamorph` of lmms-eval: what its tasks ask, and what is refused.

Where lmms-eval is installed its own classes are used, elsewhere a stand-in
(`tests/fake_lmms_eval.py`).
"""

import importlib
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from metamorph.config.data_keys import MAX_PIXELS
from metamorph.data.images import open_image
from metamorph.errors import UserError
from metamorph.generation.assistant import Assistant
from metamorph.generation.messages import SYSTEM, Message, question
from metamorph.generation.picture_files import drawing_of
from metamorph.generation.settings import AnswerSettings, Sampling
from metamorph.integrations.lmms_eval.manifest import manifest
from metamorph.model import assemble
from tests import fake_libraries
from tests.page_folder import let_draw
from tests.tiny_run import GRID, tiny_decoder

ROOT = Path(__file__).parents[2]
RED, GREEN = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 48), "green")
DOCUMENTS = [[RED], [RED, GREEN], [GREEN], [], None]
TASK, SPLIT = "shapes", "test"
GREEDY = {"max_new_tokens": 6, "do_sample": False}
COT = "[GEN_PROMPT]Draw it for: {question}[/GEN_PROMPT][QUESTION]What is it?[/QUESTION]"


@dataclass
class Request:
    """What of lmms-eval's `Instance` a model reads."""

    args: tuple


def asked(words: str, document: int, **wanted) -> Request:
    return Request((words, GREEDY | wanted, lambda pictures: pictures, document, TASK, SPLIT))


@pytest.fixture
def lmms_model(monkeypatch):
    """The class, on top of what is installed."""
    if find_spec("lmms_eval") is None:
        fake_libraries.install(monkeypatch, "lmms-eval")
    name = "metamorph.integrations.lmms_eval.model"
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name).Model
    del sys.modules[name]  # it is made of a stand-in that is about to go


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory):
    """A model that begins every answer with a picture, where it may; without a decoder."""
    model, tokenizer = assemble(parts / "llama", parts / "siglip", grid=GRID)
    let_draw(model)
    folder = tmp_path_factory.mktemp("drawing")
    model.save_pretrained(folder, tokenizer)
    return folder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder")
    tiny_decoder().save_pretrained(folder)
    return folder


@pytest.fixture
def opened_model(lmms_model, folder):
    def open_model(**arguments):
        model = lmms_model(str(folder), device="cpu", **arguments)
        model.task_dict[TASK] = {SPLIT: DOCUMENTS}
        return model

    return open_model


def settings(max_new_tokens=6, **others) -> AnswerSettings:
    return AnswerSettings(max_new_tokens, max_images=0, drawing=None, **others)


# Questions.


def test_answers_are_those_of_the_assistant_whatever_stands_beside_them(opened_model, folder):
    requests = [
        asked("What is it?", 0),
        asked("Is <image> larger than <image>?", 1),
        asked("Which?", 1, max_new_tokens=9),
        asked("Hello", 3),
        asked("Hello", 4),
    ]
    conversations = [
        [question("What is it?", RED)],
        [question("Is <image> larger than <image>?", RED, GREEN)],
        [question("Which?", RED, GREEN)],
        [question("Hello")],
        [question("Hello")],
    ]
    wanted = [settings(), settings(), settings(9), settings(), settings()]
    replies = Assistant.from_pretrained(folder).generate(conversations, wanted)
    for batch_size in (1, "3"):  # text, as lmms-eval's command line has it
        results = opened_model(batch_size=batch_size).generate_until(requests)
        assert [result.text for result in results] == [reply.text for reply in replies]
        counts = [result.token_counts for result in results]
        assert [c.input_tokens for c in counts] == [r.usage.prompt_tokens for r in replies]
        assert [c.output_tokens for c in counts] == [r.usage.answer_tokens for r in replies]


def test_what_a_task_asks_for_is_not_changed(opened_model):
    request = asked("Hello", 3, until=["."])
    before = dict(request.args[1])
    opened_model().generate_until([request])
    assert request.args[1] == before  # lmms-eval's cache makes its keys of them, afterwards


def test_a_system_prompt_comes_first(opened_model, folder):
    [result] = opened_model(system_prompt="Be brief.").generate_until([asked("Hello", 3)])
    conversation = [Message(SYSTEM, "Be brief."), question("Hello")]
    [reply] = Assistant.from_pretrained(folder).generate([conversation], settings())
    assert result.token_counts.input_tokens == reply.usage.prompt_tokens
    assert result.text == reply.text


def test_a_repeated_request_is_drawn_anew(opened_model, folder):
    request = asked("Hello", 3, max_new_tokens=20, do_sample=True, temperature=3.0)
    results = opened_model(seed=5).generate_until([request] * 2)
    conversations = [[question("Hello")]] * 2
    wanted = [settings(20, sampling=Sampling(3.0, seed=seed)) for seed in (5, 6)]
    replies = Assistant.from_pretrained(folder).generate(conversations, wanted)
    assert [result.text for result in results] == [reply.text for reply in replies]
    assert results[0].text != results[1].text


def test_an_answer_ends_where_the_context_does(opened_model, caplog):
    requests = [asked("Hello", 3, max_new_tokens=4096)] * 2
    model = opened_model(context=40)
    for result in model.generate_until(requests):
        assert result.token_counts.input_tokens + result.token_counts.output_tokens <= 40
    [record] = caplog.records
    assert "task shapes, document 3: max_new_tokens 4096 is cut to" in record.message
    with pytest.raises(UserError, match="task shapes, document 0: .* leaves no room"):
        model.generate_until([asked("Hello " * 40, 0)])


def test_words_with_too_few_places_have_their_pictures_before_them(opened_model, folder, caplog):
    """As a question about two pictures that speaks of one of them alone."""
    [result] = opened_model().generate_until([asked("What is in <image>?", 1)])
    [reply] = Assistant.from_pretrained(folder).generate(
        [[Message("user", (RED, GREEN, "What is in <image>?"))]], settings()
    )
    assert (result.text, result.token_counts.input_tokens) == (
        reply.text,
        reply.usage.prompt_tokens,
    )
    assert "document 1: not as many pictures as 1 <image> in the words" in caplog.text


# A picture on the way.


@pytest.mark.parametrize(
    ("words", "to_draw", "after"),
    [
        (COT, "Draw it for: What is it?", "What is it?"),
        ("What is it?", "Sketch: What is it?", "What is it?"),
    ],
    ids=["with a request", "without one"],
)
def test_what_is_drawn_is_read_with_the_question(opened_model, folder, words, to_draw, after):
    model = opened_model(batch_size=2, generation_prompt_template="Sketch: {question}")
    requests = [asked(words, document, visual_cot=True) for document in (0, 1, 3)]
    assistant = Assistant.from_pretrained(folder)
    for result, pictures in zip(
        model.generate_visual_cot(requests), ([RED], [RED, GREEN], []), strict=True
    ):
        length = GRID**2 + 64
        drawing_settings = AnswerSettings(length, max_images=1, drawing=None)
        [first] = assistant.generate([[question(to_draw, *pictures)]], drawing_settings)
        [drawing] = first.drawings
        [second] = assistant.generate([[question(after, *pictures, drawing)]], settings())
        assert result.text == second.text
        usages = first.usage, second.usage
        assert result.token_counts.input_tokens == sum(u.prompt_tokens for u in usages)
        assert result.token_counts.output_tokens == sum(u.answer_tokens for u in usages)


@pytest.mark.parametrize("reencode", [True, False])
def test_drawings_are_saved_and_may_be_read_from_their_pixels(
    opened_model, folder, decoder, tmp_path, monkeypatch, reencode
):
    model = opened_model(decoder=str(decoder), reencode=reencode, save_to=str(tmp_path))
    encoder, read = model.assistant.model.encoder, []
    preprocess = encoder.preprocess
    monkeypatch.setattr(encoder, "preprocess", lambda some: read.extend(some) or preprocess(some))
    [result] = model.generate_visual_cot([asked(COT, 0)])
    saved = tmp_path / TASK / "0.png"
    pixels = open_image(saved, MAX_PIXELS)
    assert reencode == any(picture.tobytes() == pixels.tobytes() for picture in read)
    assistant = Assistant.from_pretrained(folder)
    width = assistant.model.config.visual_width
    drawing = drawing_of(saved.read_bytes(), GRID**2, width, max_pixels=MAX_PIXELS)
    assert drawing is not None
    seen = question("What is it?", RED, pixels if reencode else drawing)
    [reply] = assistant.generate([[seen]], settings())
    assert result.text == reply.text


def test_without_a_drawing_the_words_that_came_are_the_answer(lmms_model, parts, tmp_path, caplog):
    silent, tokenizer = assemble(parts / "llama", parts / "siglip", grid=GRID)
    silent.save_pretrained(tmp_path, tokenizer)
    model = lmms_model(str(tmp_path), device="cpu", context=24)  # has no room for a picture
    model.task_dict[TASK] = {SPLIT: DOCUMENTS}
    [result] = model.generate_visual_cot([asked(COT, 3)])
    assert isinstance(result.text, str)
    assert "nothing was drawn for 1 of 1 requests" in caplog.text


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"max_batch_size": 8},
            "model_args: unknown 'max_batch_size', expected some of pretrained, ",
        ),
        ({"pretrained": ""}, "expected pretrained=FOLDER"),
        ({"pretrained": 2024}, "pretrained: expected text, got 2024"),
        ({"pretrained": "nowhere"}, "nowhere does not exist"),
        ({"batch_size": "auto"}, "batch_size: expected a whole number, at least 1, got 'auto'"),
        ({"batch_size": 0}, "batch_size: expected"),
        ({"device": "tpu"}, "device: 'tpu' is none of"),
        ({"precision": "fp16"}, "fp16"),
        ({"context": 1}, "context: expected"),
        ({"seed": -1}, "seed: expected"),
        ({"max_new_tokens": "many"}, "max_new_tokens: expected"),
        ({"reencode": "yes"}, "reencode: expected true or false"),
        ({"decoder": "decoder"}, "decoder goes with reencode=true or save_to=FOLDER only"),
        ({"save_to": "drawings"}, "reencode and save_to need pixels, but"),
    ],
)
def test_arguments_that_cannot_be_followed(lmms_model, folder, arguments, sentence):
    with pytest.raises(UserError) as caught:
        lmms_model(**{"pretrained": str(folder), "device": "cpu"} | arguments)
    assert sentence in str(caught.value)


def test_all_requests_are_checked_before_the_first_is_answered(opened_model, monkeypatch):
    model = opened_model()
    monkeypatch.setattr(model.assistant, "generate", None)
    with pytest.raises(
        UserError, match=r"^task shapes, document 3: generation_kwargs: unknown 'x'"
    ):
        model.generate_until([asked("Hello", 0), asked("Hello", 3, x=1)])
    with pytest.raises(UserError, match="unknown 'visual_cot'"):  # of another kind of task
        model.generate_until([asked("Hello", 0, visual_cot=True)])


def test_videos_are_refused_by_their_document(opened_model):
    request = Request(("Hello", GREEDY, lambda pictures: ["film.mp4"], 3, TASK, SPLIT))
    with pytest.raises(UserError, match="task shapes, document 3: expected pictures, got str 'fi"):
        opened_model().generate_until([request])


def test_a_key_of_other_models_is_said_once(opened_model, caplog):
    opened_model().generate_until([asked("Hello", 3, image_aspect_ratio="pad")] * 2)
    assert caplog.text.count("image_aspect_ratio is for other models") == 1


def test_other_kinds_of_tasks_are_not_answered(opened_model):
    model = opened_model()
    for answer in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(NotImplementedError, match="metamorph: "):
            answer([])


def test_weights_are_given_back(opened_model):
    model = opened_model()
    model.clean()
    assert not hasattr(model, "assistant") and model.device.type == "cpu"


# How lmms-eval finds it.


def test_the_entry_point_names_a_model_of_lmms_eval(lmms_model):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [(name, target)] = project["entry-points"]["lmms_eval.models"].items()
    module, _, function = target.partition(":")
    assert getattr(importlib.import_module(module), function) is manifest
    found = manifest()
    assert found.model_id == name == "metamorph" and found.chat_class_path is None
    module, _, attribute = found.simple_class_path.rpartition(".")
    assert getattr(importlib.import_module(module), attribute) is lmms_model
    assert lmms_model.is_simple


def test_to_be_found_costs_nothing():
    code = (
        "import sys, metamorph.integrations.lmms_eval.manifest\n"
        "assert not {'torch', 'transformers', 'PIL', 'lmms_eval'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
