"""A file of prompts answered into a folder: what is written, and how a second run goes on."""

import json
import os
import signal
from collections import deque
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from metamorph.errors import Stopped, UserError
from metamorph.generation.answer_folder import digest_of_model, file_names, open_answers
from metamorph.generation.answering import UNDER_WAY, answer_all
from metamorph.generation.events import Usage
from metamorph.generation.messages import Drawing
from metamorph.generation.picture_files import drawing_of
from metamorph.generation.prompt_files import read_prompts
from metamorph.generation.settings import AnswerSettings, Sampling

TOKENS, WIDTH = 4, 24
MANIFEST = {"prompts": "0a", "model": "0b", "temperature": 0.5, "stop": []}
PROMPTS = [
    {"id": "hello", "prompt": "Hello"},
    {"id": "a/b", "prompt": "Draw it twice", "seed": 3},
    {"prompt": "Go on for ever", "stop": ["."]},
]


class Scripted:
    """Stands in for an assistant with two slots. It repeats what it is asked; words in it say what
    else happens."""

    def __init__(self):
        self.model = SimpleNamespace(
            config=SimpleNamespace(tokens_per_image=TOKENS, visual_width=WIDTH)
        )
        self.under_way, self.asked, self.most = [], [], 0

    def status(self):
        return SimpleNamespace(slots=2)

    def submit(self, messages, settings, *, reencode):
        text = messages[-1].text
        if "refuse" in text:
            raise UserError("conversation: its 9 tokens and max_new_tokens 9 exceed the context")
        answer = SimpleNamespace(events=deque(), finished=False, reply=reply_to(text))
        self.asked.append(text)
        self.under_way.append(answer)
        self.most = max(self.most, len(self.under_way))
        return answer

    def advance(self):
        for answer in self.under_way[1::-1]:  # of two, the later is sooner done
            answer.events.append("event")
            answer.finished = True
        self.under_way = self.under_way[2:]
        return bool(self.under_way)


def reply_to(text: str):
    generator = torch.Generator().manual_seed(len(text))
    features = torch.nn.functional.normalize(
        torch.randn(TOKENS, WIDTH, generator=generator), dim=-1
    )
    picture = None if "undrawn" in text else Image.new("RGB", (8, 8), "red")
    drawing = Drawing(features, picture)
    parts = (f"You said {text}", drawing, drawing) if "Draw" in text else (f"You said {text}",)
    drawn = [drawing] * (len(parts) - 1)
    failed = "fails" in text
    return SimpleNamespace(
        parts=parts,
        text=parts[0],
        drawings=drawn,
        pictures=[part.picture for part in drawn if part.picture],
        finish_reason="error" if failed else "length" if "ever" in text else "stop",
        usage=Usage(prompt_tokens=5, answer_tokens=7, images=len(drawn)),
        error="logits are NaN" if failed else "",
    )


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in PROMPTS))
    return read_prompts(path, AnswerSettings(sampling=Sampling(seed=1)))


def answered(tmp_path, file, assistant=None, manifest=MANIFEST):
    """What became of a run, and the lines of the folder afterwards by id."""
    with open_answers(tmp_path / "out", manifest, file.prompts) as folder:
        tally = answer_all(assistant or Scripted(), file, folder)
    return tally, lines(tmp_path)


def lines(tmp_path) -> dict[str, dict]:
    written = (tmp_path / "out" / "answers.jsonl").read_text()
    assert written.endswith("\n") or not written
    found = [json.loads(line) for line in written.splitlines()]
    by_id = {line["id"]: line for line in found}
    assert len(by_id) == len(found)  # nothing stands twice
    return by_id


def test_a_line_and_pictures_for_every_prompt(tmp_path, file):
    tally, found = answered(tmp_path, file)
    assert (tally.answered, tally.cut, tally.failed) == (3, 1, 0)
    assert found["hello"] == {
        "id": "hello",
        "text": "You said Hello",
        "parts": [{"type": "text", "text": "You said Hello"}],
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 5, "cached_tokens": 0, "answer_tokens": 7, "images": 0},
        "seed": 1,
        "settings": {
            "max_new_tokens": 256, "max_images": None, "stop": [], "temperature": 0.0,
            "top_k": None, "top_p": None, "min_p": None, "repetition_penalty": 1.0,
            "drawing_steps": None, "sampler": None, "guidance": None, "guidance_rescale": 0.0,
            "guidance_interval": [0.0, 1.0],
        },
    }  # fmt: skip
    assert (found["3"]["finish_reason"], found["3"]["settings"]["stop"]) == ("length", ["."])
    drawn = found["a/b"]
    assert drawn["seed"] == 3 and [part["type"] for part in drawn["parts"]] == [
        "text", "image_url", "image_url",
    ]  # fmt: skip
    names = [part["image_url"]["url"] for part in drawn["parts"][1:]]
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"manifest.json", "answers.jsonl", *names} and len(names) == 2
    data = (tmp_path / "out" / names[0]).read_bytes()
    expected = reply_to("Draw it twice").drawings[0].features.half().float()
    assert torch.equal(drawing_of(data, TOKENS, WIDTH, 1000).features, expected)


def test_an_answer_is_content_of_a_next_turn(tmp_path, file):
    answered(tmp_path, file)
    parts = lines(tmp_path)["a/b"]["parts"]
    asked = [{"role": "user", "content": "Draw it twice"}, {"role": "assistant", "content": parts}]
    path = tmp_path / "next.jsonl"
    path.write_text(json.dumps({"messages": [*asked, {"role": "user", "content": "Greener."}]}))
    [prompt] = read_prompts(path, AnswerSettings(), image_root=tmp_path / "out").prompts
    _, own, _ = prompt.messages(TOKENS, WIDTH)
    assert [type(part) for part in own.parts] == [str, Drawing, Drawing]


def test_a_second_run_has_nothing_to_do(tmp_path, file):
    answered(tmp_path, file)
    before = (tmp_path / "out" / "answers.jsonl").stat()
    assistant = Scripted()
    tally, found = answered(tmp_path, file, assistant)
    assert assistant.asked == [] and tally.answered == 0 and len(found) == 3
    assert (tmp_path / "out" / "answers.jsonl").stat() == before


@given(st.data())
@settings(deadline=None, max_examples=10)
def test_a_run_that_was_killed_goes_on_wherever_its_file_was_torn(tmp_path_factory, data):
    tmp_path = tmp_path_factory.mktemp("torn")
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in PROMPTS))
    file = read_prompts(path, AnswerSettings())
    _, expected = answered(tmp_path, file)
    answers = tmp_path / "out" / "answers.jsonl"
    whole = answers.read_bytes()
    kept = data.draw(st.integers(0, len(whole)))
    answers.write_bytes(whole[:kept])
    assistant = Scripted()
    tally, found = answered(tmp_path, file, assistant)
    assert found == expected
    # A last line that lacks no more than its line end is whole.
    left = sum(len(line) > kept for line in (whole[:at] for at, b in enumerate(whole) if b == 10))
    assert tally.answered == len(assistant.asked) == left


def test_what_something_else_has_broken_is_answered_anew(tmp_path, file):
    _, expected = answered(tmp_path, file)
    path = tmp_path / "out" / "answers.jsonl"
    first, second, third = path.read_text().splitlines()
    path.write_text("\n".join([first, first, "[]", '{"id": "x", "parts": []}', second[3:], "{"]))
    assistant = Scripted()
    assert answered(tmp_path, file, assistant)[1] == expected
    assert len(assistant.asked) == 2


def test_prompts_that_fail_are_lines_too_and_are_tried_again(tmp_path):
    texts = ["it fails", "refuse it", "fine", "Draw undrawn"]
    (tmp_path / "none.png").write_bytes(b"no picture")
    written = [{"prompt": text} for text in texts] + [{"prompt": "x", "image": "none.png"}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, written)))
    file = read_prompts(path, AnswerSettings())
    for _ in range(2):
        assistant = Scripted()
        tally, found = answered(tmp_path, file, assistant)
        assert len(found) == 5 and tally.failed == 4
        assert found["1"]["error"] == "logits are NaN" and "parts" not in found["1"]
        assert found["2"]["error"].endswith("exceed the context")
        assert found["4"]["error"].startswith("the pictures of its answer (2) could not be drawn")
        assert found["5"]["error"].startswith("image none.png is not a JPEG")
        assert found["5"]["seed"] == 0 and found["3"]["text"] == "You said fine"
    assert tally.answered == 0 and "fine" not in assistant.asked
    assert tally.first_failure.startswith("2: conversation: its 9 tokens")


def test_a_bounded_number_is_under_way(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"text {n}"}) for n in range(50)))
    assistant = Scripted()
    tally, found = answered(tmp_path, read_prompts(path, AnswerSettings()), assistant)
    assert tally.answered == len(found) == len(assistant.asked) == 50
    assert assistant.most == UNDER_WAY * 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_and_what_is_written_stays(tmp_path, file, number):
    class Interrupted(Scripted):
        def advance(self):
            os.kill(os.getpid(), number)
            return super().advance()

    with pytest.raises(Stopped, match="2 of 3 prompts are answered; the same command goes on"):
        answered(tmp_path, file, Interrupted())
    tally, found = answered(tmp_path, file)
    assert tally.answered == 1 and len(found) == 3


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"prompts": "1a"}, "was made with other prompts than these"),
        ({"model": "1b"}, "was made with another model than this"),
        ({"temperature": 0.7}, "was made with temperature 0.5, and it is 0.7 now"),
        ({"stop": ["x"]}, r"was made with stop \[\], and it is \['x'\] now"),
    ],
)
def test_a_folder_of_other_prompts_or_settings_is_refused(tmp_path, file, changes, problem):
    _, before = answered(tmp_path, file)
    with pytest.raises(UserError, match=rf"^--output: \S+out {problem}; give a new folder$"):
        answered(tmp_path, file, manifest=MANIFEST | changes)
    assert lines(tmp_path) == before


def test_a_folder_of_something_else_is_refused(tmp_path, file):
    out = tmp_path / "out"
    out.write_text("mine")
    with pytest.raises(UserError, match="out is a file, expected a folder"):
        answered(tmp_path, file)
    out.unlink()
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="out holds something else, expected a new or an empty"):
        answered(tmp_path, file)
    for content in ("{oops", "[]"):
        (out / "manifest.json").write_text(content)
        with pytest.raises(UserError, match=r"manifest\.json .*; give a new folder"):
            answered(tmp_path, file)
    assert {path.name for path in out.iterdir()} == {"thesis.txt", "manifest.json"}


def test_a_folder_that_was_killed_before_its_manifest_is_taken(tmp_path, file):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".manifest.json.1234567.tmp").write_text("{")
    assert answered(tmp_path, file)[0].answered == 3


def test_a_folder_without_any_answer_may_become_another_ones(tmp_path, file):
    with open_answers(tmp_path / "out", MANIFEST | {"model": "broken"}, file.prompts):
        pass  # that model could not be opened
    assert answered(tmp_path, file)[0].answered == 3
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == MANIFEST


def test_two_runs_at_once_are_refused(tmp_path, file):
    with open_answers(tmp_path / "out", MANIFEST, file.prompts):
        with pytest.raises(UserError, match="--output: .*out is in use by process"):
            answered(tmp_path, file)


def test_a_changed_model_is_another_one(tmp_path):
    for name in ("model.safetensors", "tokenizer.json", "decoder/config.json", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    before = digest_of_model(tmp_path)
    (tmp_path / "notes.txt").write_text("read today")
    assert digest_of_model(tmp_path) == before != digest_of_model(tmp_path, tmp_path / "decoder")
    os.utime(tmp_path / "decoder" / "config.json", (1, 1))
    assert digest_of_model(tmp_path) != before


@settings(max_examples=50)
@given(st.lists(st.text("aA1_/.- \0éß", min_size=1, max_size=6), unique=True, max_size=8))
def test_every_id_has_a_name_that_every_file_system_takes(ids):
    names = file_names(ids)
    assert list(names) == ids
    assert len({name.casefold() for name in names.values()}) == len(ids)
    for name in names.values():
        assert name.isascii() and len(name) < 120 and name[0] not in ".-"
        assert not set(name) & set('/\\:*?"<>| \n\0')


def test_names_of_pictures_are_the_ids_where_they_can_be():
    ids = ["cat", "a.b-c_1", "../../etc", "A", "a", "x" * 200, "käse", "..", "-rf"]
    names = file_names(ids)
    assert (names["cat"], names["a.b-c_1"]) == ("cat", "a.b-c_1")
    for name in ids[2:]:
        assert names[name] != name and len(names[name].rpartition("-")[2]) == 12
    (taken,) = file_names(["a/b"]).values()
    assert len(set(file_names(["a/b", taken]).values())) == 2  # whoever chose it as an id
