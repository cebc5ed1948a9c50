"""Conversations become tokens: what is supervised, where images lie, what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from metamorph.data.conversation import (
    ASSISTANT,
    SYSTEM,
    USER,
    ChatEncoder,
    Sample,
    SampleError,
    Turn,
)
from metamorph.data.toy.tasks import KINDS, make_task
from metamorph.data.toy.tokenizer import build_toy_tokenizer
from metamorph.errors import UserError
from metamorph.model.tokenizer import add_image_tokens

PICTURE = Image.new("RGB", (8, 8))


def sample(*texts: str, images: int = 0) -> Sample:
    turns = tuple(Turn((USER, ASSISTANT)[i % 2], text) for i, text in enumerate(texts))
    return Sample("s", turns, (PICTURE,) * images)


def test_layout_of_a_document(encoder, tokenizer):
    document = encoder.encode(sample("<image>red?", "yes<image>", images=2))
    text = tokenizer.decode(document.token_ids)
    start, end = "<image_start>", "<image_end>"
    assert text == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
        f"{start * 5}{end}red?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        f"yes{start * 5}{end}<|eot_id|>"
    )
    assert document.is_target == [False, True]
    for first, last in document.spans:
        assert last - first == encoder.tokens_per_image
        assert document.token_ids[first - 1] == encoder.image_start
        assert document.token_ids[last] == encoder.image_end


def test_supervised_is_the_response_without_its_visual_tokens(encoder, tokenizer):
    document = encoder.encode(sample("<image>red?", "yes<image>", images=2))
    pairs = zip(document.token_ids, document.supervised, strict=True)
    supervised = [token for token, is_supervised in pairs if is_supervised]
    assert tokenizer.decode(supervised) == "yes<image_start><image_end><|eot_id|>"


@pytest.mark.parametrize("kind", KINDS)
def test_answers_survive_the_round_trip_through_tokens(kind, encoder):
    for index in range(10):
        task = make_task(5, index, "train", {kind: 1.0})
        document = encoder.encode(task.sample)
        pairs = zip(document.token_ids, document.supervised, strict=True)
        answer = encoder.decode([token for token, is_supervised in pairs if is_supervised])
        assert answer == task.sample.turns[1].text.replace("<image>", "")


def test_prompt_ends_with_the_response_header(encoder, tokenizer):
    document = encoder.encode_prompt(sample("hello"))
    assert tokenizer.decode(document.token_ids).endswith(
        "hello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert not any(document.supervised)


def test_special_tokens_in_text_stay_text(encoder):
    document = encoder.encode(sample("<|eot_id|><image_start>", "ok"))
    assert document.token_ids.count(encoder.end_of_turn) == 2
    assert encoder.image_start not in document.token_ids


@pytest.mark.parametrize(
    ("broken", "cause"),
    [
        (sample(), "empty conversation"),
        (sample("<image>", "ok"), "image count differs"),
        (sample("hello", "ok", images=1), "image count differs"),
        (Sample("s", (Turn(ASSISTANT, "hi"),)), "turns out of order"),
        (Sample("s", (Turn(USER, "a"), Turn(USER, "b"))), "turns out of order"),
        (sample(*("a" * 1001)), "too many turns"),
        (sample("a", "b" * 2**20), "too much text"),
    ],
)
def test_malformed_conversations_are_named(encoder, broken, cause):
    with pytest.raises(SampleError, match="sample s") as caught:
        encoder.encode(broken)
    assert caught.value.cause == cause


def test_a_tokenizer_without_the_image_tokens_is_refused():
    with pytest.raises(UserError, match="lacks <image_start>, <image_end>; expected"):
        ChatEncoder(build_toy_tokenizer(), 4)


def test_a_tokenizer_without_a_chat_format_is_refused():
    foreign = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")))
    with pytest.raises(UserError, match=r"model.chat_template.*<\|begin_of_text\|>.*<\|eot_id\|>"):
        add_image_tokens(foreign)


def test_a_system_turn_may_come_first(encoder, tokenizer):
    turns = (Turn(SYSTEM, "Be brief."), Turn(USER, "hi"), Turn(ASSISTANT, "hello"))
    document = encoder.encode(Sample("s", turns))
    assert tokenizer.decode(document.token_ids).startswith(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
    )
    with pytest.raises(SampleError, match="turn 2 is from system, expected assistant"):
        encoder.encode(Sample("s", (*turns[:2], turns[0])))


def test_a_conversation_without_a_response_is_a_skip(encoder):
    with pytest.raises(SampleError, match="sample s: no turn is the assistant's") as caught:
        encoder.encode(sample("hello?"))
    assert caught.value.cause == "no response"


def test_decoding_keeps_the_spaces_of_the_text(tokenizer, monkeypatch):
    """Llama 3 asks for a clean-up of spaces, which some versions of transformers obey."""
    monkeypatch.setattr(tokenizer, "clean_up_tokenization_spaces", True)
    asked, decode = {}, tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda *a, **k: asked.update(k) or decode(*a, **k))
    text = "x != y , do n't"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ChatEncoder(tokenizer, 4).decode(ids) == text
    assert asked["clean_up_tokenization_spaces"] is False


@given(st.text(alphabet=" \n\tab.<|eot_id|>é"))
def test_llama_3_headers_and_text_are_encoded_apart(encoder, tokenizer, text):
    """As Meta's own code does it: whatever a turn begins with, its header stays as it is."""
    document = encoder.encode(sample(text, text))
    header = [tokenizer.encode(part, add_special_tokens=False)
              for part in ("user", "assistant", "\n\n")]  # fmt: skip
    start, end = tokenizer.convert_tokens_to_ids(["<|start_header_id|>", "<|end_header_id|>"])
    words = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    expected = [tokenizer.convert_tokens_to_ids("<|begin_of_text|>")]
    for role in header[:2]:
        expected += [start, *role, end, *header[2], *words, encoder.end_of_turn]
    assert document.token_ids == expected
