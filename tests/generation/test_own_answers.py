"""A model's own answers become data: which are kept, and that a run reads them beside scenes."""

import json
import shutil
from types import SimpleNamespace

import pytest
import yaml

from metamorph import Assistant
from metamorph.config import DataConfig
from metamorph.config.shipped import configs_folder
from metamorph.data.opening import open_source
from metamorph.errors import UserError
from metamorph.generation.own_answers import HELD_OUT_PROMPTS, PROMPTS, write_own_answers
from metamorph.model import assemble
from tests.tiny_run import GRID, write_language, write_vision

REPLIES = {  # prompt: text and how it ended
    "Hello!": ("Hi, “friend”.", "stop"),
    "Count to a thousand.": ("1, 2, 3,", "length"),
    "Say nothing.": ("", "stop"),
    "What is 2 + 2?": ("4", "stop"),
}


class Scripted:
    """Stands in for an assistant that answers one question in each round."""

    def __init__(self):
        self.waiting = []

    def submit(self, messages, settings):
        assert settings.max_images == 0 and settings.sampling.temperature == 0
        text, reason = REPLIES[messages[-1].text]
        reply = SimpleNamespace(text=text, finish_reason=reason, error="")
        self.waiting.append(SimpleNamespace(finished=False, reply=reply))
        return self.waiting[-1]

    def advance(self):
        if self.waiting:
            self.waiting.pop(0).finished = True
        return bool(self.waiting)


def test_answers_that_ended_by_themselves_are_data(tmp_path):
    path = tmp_path / "data" / "chat.jsonl"
    assert write_own_answers(Scripted(), [*REPLIES], path, 9) == 2
    config = DataConfig(path=str(path), shuffle=False)
    source = open_source(config, seed=0)
    said = [[turn.text for turn in source.sample(index).turns] for index in range(len(source))]
    assert said == [["Hello!", "Hi, “friend”."], ["What is 2 + 2?", "4"]]


def test_the_mixture_holds_scenes_and_what_was_said(tmp_path):
    shutil.copy(configs_folder() / "mixtures" / "english.yaml", tmp_path)
    write_own_answers(Scripted(), [*REPLIES], tmp_path / "chat.jsonl", 9)
    source = open_source(DataConfig(source="mixture", path=str(tmp_path / "english.yaml")), seed=0)
    kinds = [source.sample(index).id.startswith("english-train") for index in range(100)]
    assert 83 <= sum(kinds) <= 87  # of scenes, whose weight is 0.85


def test_the_control_learns_the_same_kinds_as_the_mixture():
    mixture, control = (
        yaml.safe_load((configs_folder() / name).read_text())
        for name in ("mixtures/english.yaml", "smollm2/control.yaml")
    )
    assert mixture["scenes"]["kinds"] == control["data"]["kinds"]


def test_a_model_that_never_ends_an_answer_is_a_sentence(tmp_path):
    parts = write_language(tmp_path / "language"), write_vision(tmp_path / "vision")
    assistant = Assistant(*assemble(*parts, grid=GRID))
    with pytest.raises(UserError, match="chat.jsonl: no answer to 2 prompts ended within 3 tokens"):
        write_own_answers(assistant, ["Hello!", "How are you?"], tmp_path / "chat.jsonl", 3)
    assert not (tmp_path / "chat.jsonl").exists()


def test_the_shipped_prompts_are_plain_and_the_held_out_ones_are_others():
    prompts, held_out = (
        path.read_text(encoding="utf-8").splitlines() for path in (PROMPTS, HELD_OUT_PROMPTS)
    )
    assert len({*prompts}) == len(prompts) >= 300
    assert len({*held_out} - {*prompts}) == len(held_out) == 40
    for prompt in (*prompts, *held_out):
        assert prompt == prompt.strip() and json.dumps(prompt).isascii()
        assert not {"draw", "image", "picture"} & {*prompt.lower().split()}
