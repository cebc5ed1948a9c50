"""Conversations become tokens: what is supervised, where images lie, what is refused."""

import pytest
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from metamorph.data.conversation import (
    ASSISTANT,
    USER,
    ChatEncoder,
    Sample,
    SampleError,
    Turn,
)
from metamorph.data.toy.tasks import KINDS, make_task
from metamorph.data.toy.tokenizer import build_toy_tokenizer
from metamorph.errors import UserError

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
    ],
)
def test_malformed_conversations_are_named(encoder, broken, cause):
    with pytest.raises(SampleError, match="sample s") as caught:
        encoder.encode(broken)
    assert caught.value.cause == cause


def test_a_tokenizer_without_our_special_tokens_is_refused():
    with pytest.raises(UserError, match="lacks .* <image_start>, <image_end>; .*Llama-3") as caught:
        ChatEncoder(build_toy_tokenizer(), 4)
    assert "eot_id" not in str(caught.value)  # that one it has
    foreign = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")))
    with pytest.raises(UserError, match=r"<\|begin_of_text\|>.*<\|eot_id\|>"):
        ChatEncoder(foreign, 4)
