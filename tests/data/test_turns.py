"""Turns as other programs write them, and where images stand that no placeholder names."""

import json
from functools import partial

import pytest

from metamorph.data.conversation import ASSISTANT, SYSTEM, USER, Turn
from metamorph.data.families.boxes import boxes
from metamorph.data.families.pictures import conversations
from metamorph.data.formats.json_lines import JsonLines
from metamorph.data.sources import RecordSource
from metamorph.errors import SampleError

OPENAI = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A cat."}]
LLAVA = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A cat."}]


def sample_of(tmp_path, family=conversations, **record):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(record))
    return RecordSource(JsonLines(path, tmp_path, 10**6, {}), family, 0, False).sample(0)


@pytest.mark.parametrize("written", [{"messages": OPENAI}, {"conversations": OPENAI},
                                     {"conversations": LLAVA}, {"messages": LLAVA}])  # fmt: skip
@pytest.mark.parametrize("images", [{"image": "a.png"}, {"images": ["a.png"]}])
def test_both_ways_of_writing_turns_and_images_are_read(tmp_path, written, images):
    sample = sample_of(tmp_path, **written, **images)
    # The image has no placeholder: it stands first, as `metamorph generate --image` has it.
    assert sample.turns == (Turn(USER, "<image>What is it?"), Turn(ASSISTANT, "A cat."))
    assert len(sample.images) == 1


def test_an_image_without_a_placeholder_stands_before_the_first_question(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    sample = sample_of(tmp_path, messages=[system, *OPENAI], images=["a.png", "b.png"])
    assert sample.turns[:2] == (
        Turn(SYSTEM, "Be brief."),
        Turn(USER, "<image><image>What is it?"),
    )
    drawn = [OPENAI[0], {"role": "assistant", "content": "<image>"}]
    assert sample_of(tmp_path, messages=drawn, image="a.png").turns[0].text == "What is it?"


def test_parts_of_a_turn_are_joined(tmp_path):
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}]
    messages = [{"role": "user", "content": parts}, OPENAI[1]]
    sample = sample_of(tmp_path, messages=messages, images=["a.png"])
    assert sample.turns[0] == Turn(USER, "<image>What is it?")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": OPENAI, "conversations": LLAVA}, "conversations and messages are both there"),
        ({"messages": OPENAI, "image": "a.png", "images": ["b.png"]}, "image and images are both"),
        ({"query": "What?", "id": "7"}, "neither conversations nor messages is there, only "),
        ({}, "neither conversations nor messages is there, only nothing"),
        ({"messages": OPENAI, "images": ["https://a.org/b.png"]}, "address, and nothing is down"),
        ({"messages": OPENAI, "image": "data:image/png;base64,iVBOR"}, "is an address"),
    ],
)
def test_what_would_be_left_out_or_is_elsewhere_is_refused(tmp_path, record, message):
    with pytest.raises(SampleError, match=message):
        sample_of(tmp_path, **record)


def test_the_same_images_said_twice_are_one(tmp_path):
    for images in ("a.png", ["a.png"]):
        sample = sample_of(tmp_path, messages=OPENAI, image="a.png", images=images)
        assert len(sample.images) == 1


def test_a_box_keeps_the_system_turn(tmp_path):
    turns = [{"from": "system", "value": "Be brief."}, *LLAVA]
    sample = sample_of(
        tmp_path, partial(boxes, seed=0), conversations=turns, image="a.png", box=[0, 0, 1, 1]
    )
    assert [turn.role for turn in sample.turns] == [SYSTEM, USER, ASSISTANT]
    assert "What is it?" in sample.turns[1].text and "Be brief." == sample.turns[0].text


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ("hello", "messages[0]: expected an object, got 'hello'"),
        ({"content": "x"}, "messages[0]: its role is None, expected one of human, user, gpt"),
        ({"role": "tool", "content": "x"}, "leave out turns of others, such as tools"),
        ({"role": ["user"], "content": "x"}, "messages[0]: its role is ['user']"),
        ({"role": "user"}, "messages[0].content: expected text, got None"),
        ({"role": "user", "content": [{"type": "audio"}]}, "expected a part of type text or image"),
        ({"role": "user", "content": ["x"]}, "messages[0].content[0]: expected a part of type"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}]},
            "name their files in the list `images`",
        ),
    ],
)
def test_other_turns_are_refused_in_words(tmp_path, turn, message):
    with pytest.raises(SampleError) as caught:
        sample_of(tmp_path, messages=[turn])
    assert message in str(caught.value) and "KeyError" not in str(caught.value)
