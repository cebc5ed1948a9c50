"""Prompts from a file: what a line may say, and one sentence for a file with any other line."""

import base64
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from metamorph.errors import SampleError, UserError
from metamorph.generation.messages import Drawing, Message, placed
from metamorph.generation.picture_files import png_bytes
from metamorph.generation.prompt_files import read_prompts
from metamorph.generation.settings import AnswerSettings, DrawingSettings, Sampling

TOKENS, WIDTH = 4, 24
DEFAULTS = AnswerSettings(max_new_tokens=50, sampling=Sampling(temperature=0.5, seed=9))


@pytest.fixture
def folder(tmp_path):
    """A folder `data` with pictures, and one beside it that no prompt may see."""
    for name, colour in (("red.png", "red"), ("deep/blue.png", "blue")):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), colour).save(path)
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "secret.png")
    return tmp_path / "data"


def write(folder: Path, *lines: dict | str | bytes) -> Path:
    path = folder / "prompts.jsonl"
    encoded = [json.dumps(line) if isinstance(line, dict) else line for line in lines]
    path.write_bytes(
        b"\n".join(line if isinstance(line, bytes) else line.encode() for line in encoded)
    )
    return path


def read(folder: Path, *lines: dict | str | bytes, **options):
    return read_prompts(write(folder, *lines), DEFAULTS, **options).prompts


def messages(folder: Path, line: dict, **options) -> tuple[Message, ...]:
    [prompt] = read(folder, line, **options)
    return prompt.messages(TOKENS, WIDTH)


def colours(message: Message) -> list:
    """Its text and the first pixel of its pictures."""
    return [p if isinstance(p, str) else p.getpixel((0, 0)) for p in message.parts]


RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_a_prompt_and_its_pictures(folder):
    [prompt] = read(folder, {"prompt": "Hello"})
    assert prompt.id == "1" and prompt.settings == DEFAULTS
    assert prompt.messages(TOKENS, WIDTH) == (Message("user", ("Hello",)),)
    [first] = messages(folder, {"prompt": "What?", "image": "red.png"})
    assert first.role == "user" and colours(first) == [RED, "What?"]
    both = ["red.png", str(folder / "deep" / "blue.png")]
    for line, expected in (
        ({"prompt": "Which?", "images": both}, [RED, BLUE, "Which?"]),
        ({"prompt": "A <image> or <image>", "images": both}, ["A ", RED, " or ", BLUE]),
        ({"prompt": "<image><image>?", "image": both[::-1]}, [BLUE, RED, "?"]),
        ({"prompt": "No <picture>", "image": None, "images": []}, ["No <picture>"]),
    ):
        assert colours(messages(folder, line)[0]) == expected


def test_messages_as_other_programs_write_them(folder):
    parts = [
        {"type": "text", "text": "This <image>:"},  # text, whatever it says
        {"type": "image_url", "image_url": {"url": "red.png", "detail": "auto"}},
        {"type": "image_url", "image_url": "./deep/blue.png"},
    ]
    system, asked, answered, last = messages(
        folder,
        {"messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": parts},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "And <image>?"},
        ]},
    )  # fmt: skip
    assert system == Message("system", ("Be brief.",))
    assert (asked.role, colours(asked)) == ("user", ["This <image>:", RED, BLUE])
    assert (answered.role, answered.text, last.text) == ("assistant", "Yes.", "And <image>?")


def test_an_own_picture_of_an_earlier_turn_is_what_the_model_predicted(folder):
    features = torch.nn.functional.normalize(torch.randn(TOKENS, WIDTH), dim=-1)
    made = Drawing(features, Image.new("RGB", (8, 8), "red"))
    (folder / "mine.png").write_bytes(png_bytes(made))
    part = [{"type": "image_url", "image_url": {"url": "mine.png"}}]
    line = {"messages": [
        {"role": "user", "content": part}, {"role": "assistant", "content": part},
        {"role": "user", "content": "Make it green."},
    ]}  # fmt: skip
    asked, answered, _ = messages(folder, line)
    assert colours(asked) == [RED]  # shown by the user, it is a picture like any other
    assert torch.equal(answered.parts[0].features, features.half().float())
    [prompt] = read(folder, line)
    with pytest.raises(UserError, match=r"image mine\.png: picture with features: .* another mod"):
        prompt.messages(TOKENS, WIDTH + 1)
    line["messages"][1]["content"][0]["image_url"]["url"] = "red.png"  # of somebody else
    assert colours(messages(folder, line)[1]) == [RED]


def test_a_picture_may_stand_in_the_line_itself(folder):
    written = base64.b64encode((folder / "red.png").read_bytes()).decode()
    url = f"data:image/png;base64,{written}"
    part = {"type": "image_url", "image_url": {"url": url}}
    line = {"messages": [{"role": "user", "content": [part]}]}
    assert colours(messages(folder, line)[0]) == [RED]
    assert colours(messages(folder, {"prompt": "x", "image": url})[0]) == [RED, "x"]
    part["image_url"]["url"] = "data:;base64,AAAA"
    with pytest.raises(SampleError, match=r"image messages\[0\]\.content\[0\].* is not a JPEG"):
        messages(folder, line)


def test_a_system_turn_for_all_that_have_none(folder):
    own = {"messages": [{"role": "system", "content": "Own."}, {"role": "user", "content": "x"}]}
    first, second = read(folder, {"prompt": "x"}, own, system="All.")
    assert [m.text for m in first.messages(TOKENS, WIDTH)] == ["All.", "x"]
    assert [m.text for m in second.messages(TOKENS, WIDTH)] == ["Own.", "x"]


def test_a_line_may_change_every_setting(folder):
    line = {
        "prompt": "x", "seed": 3, "temperature": 1, "top_k": 5, "top_p": 0.5, "min_p": 0.1,
        "repetition_penalty": 1.1, "max_new_tokens": 7, "max_images": 0, "stop": ["a", "b"],
        "drawing_steps": 4, "guidance": 2, "guidance_rescale": 1, "guidance_interval": [0, 0.5],
        "sampler": "ddim",
    }  # fmt: skip
    changed, usual, one, nothing = read(
        folder, line, {"prompt": "x"}, {"prompt": "x", "stop": "."}, {"prompt": "x", "seed": None}
    )
    assert changed.settings == AnswerSettings(
        7,
        Sampling(1, 5, 0.5, 0.1, 1.1, 3),
        0,
        ("a", "b"),
        DrawingSettings(4, 2, 1, (0, 0.5), "ddim"),
    )
    assert usual.settings == nothing.settings == DEFAULTS and one.settings.stop == (".",)


def test_ids_are_given_or_the_number_of_the_line(folder):
    lines = [{"prompt": "x", "id": "cat"}, "", "  ", {"prompt": "x"}, {"prompt": "x", "id": 7}]
    mark = b"\xef\xbb\xbf" + json.dumps({"prompt": "é \u2028", "id": "ö\u2028"}).encode()
    assert [prompt.id for prompt in read(folder, *lines)] == ["cat", "4", "7"]
    assert [prompt.id for prompt in read(folder, mark)] == ["ö\u2028"]


USER = {"role": "user", "content": "x"}
NO_PICTURE = {"type": "image_url", "image_url": {"url": "none.png"}}


def content(*parts) -> dict:
    return {"messages": [{"role": "user", "content": list(parts)}]}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({"promt": "x"}, "unknown key 'promt'; the nearest is 'prompt'"),
        ({"prompt": "x", "topp": 1}, "unknown key 'topp'; the nearest is 'top_p'"),
        ({"prompt": "x", "preview_every": 1}, "unknown key 'preview_every'"),
        ({}, "expected prompt or messages, neither is there"),
        ({"prompt": None}, "neither is there"),
        ({"prompt": "x", "messages": [USER]}, "expected prompt or messages, both are there"),
        ({"prompt": 3}, "prompt: expected text, got 3"),
        ({"prompt": "\ud800"}, "prompt: half a surrogate pair"),
        ({"prompt": "x", "id": ""}, "id: expected text, got an empty one"),
        ({"prompt": "x", "id": ["a"]}, r"id: expected text, got \['a'\]"),
        ({"prompt": "x", "id": True}, "id: expected text, got True"),
        ({"prompt": "x", "image": "none.png"}, "image: .*none.png: no such file"),
        ({"prompt": "x", "image": "deep"}, "image: .*deep is a folder, expected a picture"),
        ({"prompt": "x", "images": ["red.png", 3]}, "images: expected text, got 3"),
        ({"prompt": "x", "image": "a.png", "images": []}, "image and images are both there"),
        ({"prompt": "<image>"}, "1 <image> placeholders but 0 images"),
        ({"prompt": "<image> <image>", "image": "red.png"}, "2 <image> placeholders but 1 images"),
        ({"prompt": "x", "image": "https://a.b/c.png"}, "is an address, and nothing is downloaded"),
        ({"prompt": "x", "image": "data:image/png;base64,A?"}, "is no data:image/png;base64, and"),
        ({"prompt": "x", "image": "data:,AAAA"}, "image: 'data:,AAAA' is no data:image/png"),
        ({"prompt": "x", "image": "../secret.png"}, "'../secret.png' leaves its root"),
        ({"prompt": "x", "image": "/etc/passwd"}, "'/etc/passwd' leaves its root"),
        ({"prompt": "x", "image": "link.png"}, "a link that leaves its root .*; --image-root with"),
        ({"prompt": "x", "image": "a\0b"}, "cannot be followed"),
        ({"messages": [USER], "image": "red.png"}, "image: pictures of messages stand in their"),
        ({"messages": "x"}, "messages: expected a list of turns, got 'x'"),
        ({"messages": []}, "messages: expected a list of turns"),
        ({"messages": ["x"]}, r"messages\[0\]: expected an object, got 'x'"),
        ({"messages": [USER | {"name": "a"}]}, r"messages\[0\]: unknown key 'name'; the nearest"),
        ({"messages": [{"role": "tool", "content": "x"}]}, r"messages\[0\].role: expected one of"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\].content: expected text, got None"),
        ({"messages": [USER, USER]}, "turn 1 is from user, expected assistant"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "turn 0 is from assistant, exp"),
        ({"messages": [USER, {"role": "assistant", "content": "x"}]}, "the last turn is from assi"),
        ({"messages": [{"role": "system", "content": "x"}]}, "the last turn is from system"),
        ({"messages": [{"role": "system", "content": [NO_PICTURE]}, USER]}, "none.png: no such"),
        (content("x"), r"content\[0\]: expected a part of type text or image_url, got 'x'"),
        (content({"type": "input_audio"}), "expected a part of type text or image_url"),
        (content({"type": "text", "text": 3}), r"content\[0\].text: expected text, got 3"),
        (content({"type": "text", "txt": "x"}), r"content\[0\]: unknown key 'txt'"),
        (content(NO_PICTURE), r"content\[0\].image_url.url: .*none.png: no such file"),
        (content({"type": "image_url"}), r"content\[0\].image_url: expected text, got None"),
        (content(NO_PICTURE | {"image_url": {"uri": "a"}}), "unknown key 'uri'; the nearest is"),
        ({"prompt": "x", "seed": -1}, "seed: expected a whole number, from 0 to 4294967295"),
        ({"prompt": "x", "seed": "1"}, "seed: expected a whole number"),
        ({"prompt": "x", "temperature": "hot"}, "temperature: expected a number"),
        ({"prompt": "x", "temperature": 10**400}, "temperature: expected a number"),
        ({"prompt": "x", "temperature": 1e39}, "temperature: expected a number"),
        ({"prompt": "x", "top_p": 1.5}, "top_p: expected a number, from 0 to 1, got 1.5"),
        ({"prompt": "x", "top_k": True}, "top_k: expected a whole number"),
        ({"prompt": "x", "max_new_tokens": 0}, "max_new_tokens: expected a whole number"),
        ({"prompt": "x", "stop": [""]}, "stop: expected strings that are not empty"),
        ({"prompt": "x", "stop": 3}, "stop: expected text or a list of texts, got 3"),
        ({"prompt": "x", "stop": ["a", 3]}, "stop: expected strings"),
        ({"prompt": "x", "drawing_steps": 0}, "steps: expected a whole number, from 1 to 1000"),
        ({"prompt": "x", "guidance": -1}, "guidance_scale: expected a number, at least 0"),
        ({"prompt": "x", "guidance_rescale": 2}, "guidance_rescale: expected a number, from 0 to"),
        ({"prompt": "x", "guidance_interval": 1}, "guidance_interval: expected two numbers, from"),
        ({"prompt": "x", "guidance_interval": [0]}, r"expected two numbers, from 0 to 1, got \(0,"),
        ({"prompt": "x", "guidance_interval": [0, "1"]}, "interval: expected a number, from 0 to"),
        ({"prompt": "x", "guidance_interval": [1, 0]}, "interval: expected the smaller number fir"),
        ({"prompt": "x", "sampler": "dpm"}, r"scheduler: expected one of dpm\+\+, .*, got 'dpm'"),
        ({"prompt": "x", "sampler": ["ddim"]}, r"scheduler: expected one of .*, got \['ddim'\]"),
        ("[1]", "the line: expected a JSON object, got"),
        ('{"prompt": "x"', "the line is not valid JSON"),
        ('{"prompt": "x", "prompt": "y"}', "key 'prompt' stands twice"),
        (b'{"prompt": "\xff"}', "is not UTF-8 text, at byte 12"),
        ("[" * 100_000, "nested too deeply"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_used_is_named(folder, line, problem):
    with pytest.raises(UserError, match=rf"^\S+prompts\.jsonl:2: .*{problem}") as caught:
        read(folder, {"prompt": "fine"}, line)
    assert "\n" not in str(caught.value)


def test_all_lines_are_looked_at(folder):
    with pytest.raises(UserError, match=r"prompts\.jsonl:1: .*'a'.* \(bad lines in all: 3\)$"):
        read(folder, {"a": 1}, {"prompt": "x"}, {"b": 1}, {"c": 1})
    with pytest.raises(UserError, match="prompts.jsonl:3: id 'x' is also that of line 1"):
        read(folder, {"prompt": "x", "id": "x"}, {"prompt": "x"}, {"prompt": "x", "id": "x"})
    with pytest.raises(UserError, match="prompts.jsonl:2: id '2' is also that of line 1"):
        read(folder, {"prompt": "x", "id": 2}, {"prompt": "x"})


def test_files_without_prompts(folder):
    for path, problem in (
        (folder / "none.jsonl", "no such file, expected a file of prompts"),
        (folder, "is a folder, expected a file of prompts"),
        (write(folder, "", " "), "holds no prompts"),
        (folder / "red.png", r"red\.png:1: the line is not UTF-8 text, at byte 0 \(bad"),
    ):
        with pytest.raises(UserError, match=problem):
            read_prompts(path, DEFAULTS)
    with pytest.raises(UserError, match="--image-root: .*nowhere does not exist"):
        read_prompts(write(folder, {"prompt": "x"}), DEFAULTS, image_root=folder / "nowhere")


def test_pictures_may_lie_elsewhere_if_the_user_says_so(folder):
    line = {"prompt": "x", "image": "secret.png"}
    assert len(messages(folder, line, image_root=folder.parent)[0].parts) == 2
    line["image"] = "data/link.png"
    assert len(messages(folder, line, image_root=folder.parent)[0].parts) == 2


def test_a_picture_that_cannot_be_opened_costs_its_prompt_alone(folder):
    (folder / "red.png").write_bytes(b"no picture")
    first, second = read(folder, {"prompt": "x", "image": "red.png"}, {"prompt": "y"})
    with pytest.raises(SampleError, match=r"image red\.png is not a JPEG, PNG"):
        first.messages(TOKENS, WIDTH)
    assert second.messages(TOKENS, WIDTH)[0].text == "y"


def test_equal_content_has_an_equal_digest(folder):
    path = write(folder, {"prompt": "x"})
    digest = read_prompts(path, DEFAULTS).digest
    assert read_prompts(path, DEFAULTS).digest == digest
    path.write_bytes(path.read_bytes() + b"\n")
    assert read_prompts(path, DEFAULTS).digest != digest


def test_pictures_go_where_the_text_says():
    assert placed("a<image>b<image>", (1, 2)) == ("a", 1, "b", 2)
    assert placed("ab", (1, 2)) == (1, 2, "ab")
    assert placed("", ()) == ("",)
