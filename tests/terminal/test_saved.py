"""A conversation as files, and back."""

import json
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from metamorph.data.formats.records import Record
from metamorph.errors import UserError
from metamorph.generation.messages import ASSISTANT, SYSTEM, USER, Drawing, Message
from metamorph.terminal.conversation import of_messages
from metamorph.terminal.saved import load, save

TOKENS, WIDTH = 4, 8


def features(seed: int) -> torch.Tensor:
    values = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=-1)


def picture(colour: str) -> Image.Image:
    return Image.new("RGB", (6, 5), colour)


TALK = (
    Message(SYSTEM, "Be brief."),
    Message(USER, (picture("red"), picture("blue"), "Which is red?")),
    Message(ASSISTANT, ("This: ", Drawing(features(0), picture("red")), "\nand more")),
    Message(USER, "Again, ünd <image> as a word"),
    Message(ASSISTANT, (Drawing(features(1)), Drawing(features(2), picture("green")))),
)


def assert_same(found: tuple[Message, ...], expected: tuple[Message, ...]) -> None:
    assert [message.role for message in found] == [message.role for message in expected]
    for one, other in zip(found, expected, strict=True):
        for part, wanted in zip(one.parts, other.parts, strict=True):
            assert type(part) is type(wanted) or isinstance(part, Image.Image)
            if isinstance(part, Drawing):
                torch.testing.assert_close(part.features, wanted.features, atol=1e-3, rtol=0)
                part, wanted = part.picture, wanted.picture
            if isinstance(part, Image.Image):
                part, wanted = part.tobytes(), wanted.tobytes()
            assert part == wanted


def test_all_comes_back(tmp_path):
    path = tmp_path / "new" / "talk.json"
    save(path, TALK)
    assert_same(load(path, TOKENS, WIDTH), TALK)
    assert len(os.listdir(path.parent)) == 1 + 5


WORDS = st.text(st.characters(codec="utf-8"), min_size=1)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.lists(st.one_of(WORDS, st.sampled_from(["red", "blue"]).map(picture)))))
def test_any_turns_come_back(tmp_path, turns):
    talk = tuple(Message((USER, ASSISTANT)[n % 2], tuple(parts)) for n, parts in enumerate(turns))
    save(tmp_path / "talk.json", talk)
    assert_same(load(tmp_path / "talk.json", TOKENS, WIDTH), talk)
    os.remove(tmp_path / "talk.json")


def test_a_saved_conversation_is_a_training_record(tmp_path):
    save(tmp_path / "talk.json", TALK[:3])
    [line] = (tmp_path / "talk.json").read_text().splitlines()

    class Files:
        def picture(self, value):
            return Image.open(tmp_path / value)

    record = Record("line 1", json.loads(line), Files())
    assert [turn.text for turn in record.turns()] == [
        "Be brief.", "<image><image>Which is red?", "This: <image>\nand more",
    ]  # fmt: skip
    assert [image.size for image in record.pictures("image")] == [(6, 5)] * 3


def test_nothing_is_overwritten_but_what_may_be(tmp_path):
    path = tmp_path / "talk.json"
    save(path, TALK[:3])
    with pytest.raises(UserError, match="talk.json exists"):
        save(path, TALK)
    assert len(load(path, TOKENS, WIDTH)) == 3
    save(path, TALK, replace=True)
    assert len(load(path, TOKENS, WIDTH)) == 5
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder exists"):
        save(tmp_path / "folder", TALK, replace=True)


def test_another_picture_of_the_same_name_is_kept(tmp_path):
    save(tmp_path / "talk.json", TALK)
    name = json.loads((tmp_path / "talk.json").read_text())["images"][0]
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(UserError, match="holds something else"):
        save(tmp_path / "talk.json", TALK, replace=True)
    assert (tmp_path / name).read_bytes() == b"mine"


def test_a_picture_of_another_model_is_refused(tmp_path):
    save(tmp_path / "talk.json", TALK)
    with pytest.raises(UserError, match="talk.json: .*another model"):
        load(tmp_path / "talk.json", TOKENS + 1, WIDTH)


def test_a_picture_of_an_answer_without_features_is_read_from_pixels(tmp_path):
    picture("red").save(tmp_path / "a.png")
    record = {
        "messages": [
            {"role": "user", "content": "Draw."},
            {"role": "assistant", "content": [{"type": "image"}]},
        ],
        "images": ["a.png"],
    }
    (tmp_path / "talk.json").write_text(json.dumps(record))
    [_, answer] = load(tmp_path / "talk.json", TOKENS, WIDTH)
    assert answer.parts[0].tobytes() == picture("red").tobytes()


IMAGE = {"role": "user", "content": [{"type": "image"}]}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "expected a JSON object"),
        ("{}", "expected lists `messages` and `images`"),
        ({"messages": [{"role": "tool", "content": "x"}]}, r"messages\[0\]: expected an object"),
        ({"messages": ["x"]}, r"messages\[0\]"),
        ({"messages": [{"role": "user", "content": 5}]}, r"messages\[0\].content"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, r"content\[0\]"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "surrogate"),
        ({"messages": [IMAGE]}, "more images in its messages than the 0"),
        ({"messages": [IMAGE], "images": ["gone.png"]}, "gone.png"),
        ({"messages": [IMAGE], "images": [5]}, "expected names of files"),
        ({"messages": [IMAGE], "images": ["../secret.png"]}, "leaves its root"),
        ({"messages": [IMAGE], "images": ["/etc/passwd"]}, "leaves its root"),
        ({"messages": [IMAGE], "images": ["link.png"]}, "a link that leaves its root"),
        ({"messages": [IMAGE], "images": ["talk.json"]}, "is not a JPEG"),
        ({"messages": [], "images": ["a.png"]}, "1 images, of which only 0"),
        ({"messages": [], "images": ["a.png"] * 1001}, "at most 1000"),
    ],
)
def test_files_that_are_no_conversation(tmp_path, record, expected):
    (tmp_path / "talks").mkdir()
    picture("red").save(tmp_path / "secret.png")
    (tmp_path / "talks/link.png").symlink_to(tmp_path / "secret.png")
    text = record if isinstance(record, str) else json.dumps(record)
    (tmp_path / "talks/talk.json").write_text(text)
    with pytest.raises(UserError, match=expected) as refused:
        load(tmp_path / "talks/talk.json", TOKENS, WIDTH)
    assert "talk.json: " in str(refused.value) and "\n" not in str(refused.value)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no such file, expected a saved conversation"):
        load(tmp_path / "gone.json", TOKENS, WIDTH)


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ((), "the last message is not the assistant's"),
        (TALK[1:2], "the last message is not the assistant's"),
        (TALK[2:3], "a message of assistant where one of user"),
        ((TALK[1], TALK[1]), "a message of user where one of assistant"),
        ((TALK[1], TALK[2], TALK[0], TALK[2]), "a message of system where one of user"),
        ((Message(SYSTEM, (picture("red"),)),), "a picture in the system turn"),
    ],
)
def test_turns_out_of_order(turns, expected):
    with pytest.raises(UserError, match=expected):
        of_messages(turns)


def test_turns_become_questions_with_answers():
    conversation = of_messages(TALK)
    assert conversation.system == "Be brief." and len(conversation.exchanges) == 2
    assert conversation.all_messages == TALK
