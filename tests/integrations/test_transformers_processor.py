"""The processor gives what training and `Assistant` make of the same conversation."""

import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer, pipeline

from metamorph import MetaMorph, register_with_transformers
from metamorph.data.conversation import ChatEncoder, Sample, Turn
from metamorph.errors import UserError
from metamorph.model.opening import assemble
from tests.data.chat_styles import CHATML, style_tokenizer
from tests.tiny_run import GRID, write_language, write_vision

PICTURE = Image.effect_mandelbrot((90, 60), (-2, -1, 1, 1), 20).convert("LA")
SQUARE = Image.effect_mandelbrot((64, 64), (-1, -1, 1, 1), 20)
FIRST = {
    "role": "user",
    "content": [
        {"type": "image", "image": PICTURE},
        {"type": "text", "text": "hello <image_start>"},
        {"type": "image", "image": SQUARE},
    ],
}
TALK = [FIRST, {"role": "assistant", "content": "world"}, {"role": "user", "content": "what?"}]
TURNS = (
    Turn.of_pieces("user", ("", "hello <image_start>", "")),
    Turn("assistant", "world"),
    Turn("user", "what?"),
)
SAMPLE = Sample("s", TURNS, (PICTURE, SQUARE))


@pytest.fixture(scope="module", params=["llama3", "chatml"])
def folder(request, tmp_path_factory):
    register_with_transformers()
    folder = tmp_path_factory.mktemp("processor")
    parts = write_language(folder / "llama"), write_vision(folder / "siglip")
    chosen = ""
    if request.param == "chatml":
        style_tokenizer("llama2").save_pretrained(parts[0])
        chosen = str(folder / "chatml.jinja")
        (folder / "chatml.jinja").write_text(CHATML)
    model, tokenizer = assemble(*parts, grid=GRID, chat_template=chosen)
    model.save_pretrained(folder / "model", tokenizer)
    return folder / "model"


@pytest.fixture(scope="module")
def encoder(folder):
    return ChatEncoder(AutoTokenizer.from_pretrained(folder), GRID**2)


def test_a_conversation_is_that_of_our_encoders(folder, encoder, tmp_path):
    expected = encoder.encode_prompt(SAMPLE).token_ids
    pixels = MetaMorph.from_pretrained(folder).encoder.preprocess([PICTURE, SQUARE])
    AutoProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    for where in (folder, tmp_path):
        inputs = AutoProcessor.from_pretrained(where).apply_chat_template(
            TALK, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        assert inputs["input_ids"].tolist() == [expected]
        assert torch.equal(inputs["attention_mask"], torch.ones_like(inputs["input_ids"]))
        torch.testing.assert_close(inputs["pixel_values"], pixels, atol=1e-6, rtol=0)


def test_without_a_question_at_its_end_it_is_a_sample_of_training(folder, encoder):
    document = encoder.encode(SAMPLE)
    inputs = AutoProcessor.from_pretrained(folder).apply_chat_template(
        TALK, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert inputs["input_ids"] == [document.token_ids]
    assert inputs["assistant_masks"] == [[int(learned) for learned in document.supervised]]


def test_text_and_pictures_apart_give_the_same(folder, tmp_path):
    """As programs do it that write the text first; pictures may be files."""
    SQUARE.save(tmp_path / "square.png")
    processor = AutoProcessor.from_pretrained(folder)
    image = {"type": "image", "image": str(tmp_path / "square.png")}
    talk = [{"role": "user", "content": [image, {"type": "text", "text": "hello"}]}]
    options = {"add_generation_prompt": True, "return_tensors": "pt"}
    expected = processor.apply_chat_template(talk, tokenize=True, return_dict=True, **options)
    text = processor.apply_chat_template(talk, add_generation_prompt=True)
    inputs = processor(text=[text], images=[[SQUARE]], return_tensors="pt")
    assert inputs.keys() == expected.keys()
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)
    with pytest.raises(ValueError, match="expected one for each of 1 places"):
        processor(text=text)


def test_conversations_of_a_batch_are_answered_as_alone(folder):
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True,
           "return_tensors": "pt"}  # fmt: skip
    talks = [TALK, [{"role": "user", "content": "hello"}]]
    batch = processor.apply_chat_template(talks, **how)
    length = batch["input_ids"].shape[1]
    with torch.no_grad():
        logits = model(**batch).logits[:, -1]
        alone = [model(**processor.apply_chat_template(t, **how)).logits[0, -1] for t in talks]
    torch.testing.assert_close(logits, torch.stack(alone), atol=1e-5, rtol=1e-5)
    answers = model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert len(processor.batch_decode(answers[:, length:], skip_special_tokens=True)) == 2


def test_a_pipeline_answers_as_the_model_does(folder):
    answering = pipeline("image-text-to-text", model=str(folder))
    greedy = {"max_new_tokens": 4, "do_sample": False}
    [found] = answering(text=TALK, generate_kwargs=greedy, return_full_text=False)
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor.apply_chat_template(
        TALK, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    length = inputs["input_ids"].shape[1]
    answer = answering.model.generate(**inputs, **greedy)[0, length:]
    expected = processor.decode(answer, skip_special_tokens=True)
    assert found["generated_text"].strip() == expected.strip()  # it cuts the text, not the tokens
    with pytest.raises(UserError, match="begun anew"):
        answering(text=TALK[:2], generate_kwargs=greedy)


@pytest.mark.parametrize(
    ("talk", "message"),
    [
        ([{"role": "tool", "content": "x"}], "role: expected one of user, .*got 'tool'"),
        ([FIRST, FIRST], "turn 1 is from user, expected assistant"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "content: expected a tex"),
        ([{"role": "user", "content": [{"type": "image", "image": "no.png"}]}], "does not exist"),
    ],
)
def test_what_cannot_be_read_is_named(folder, talk, message):
    with pytest.raises(UserError, match=message):
        AutoProcessor.from_pretrained(folder).apply_chat_template(talk, tokenize=True)
