"""Puzzles have one right answer that they do not name, and knowledge is measured, not assumed."""

import math
import re

import pytest
import torch

from metamorph.data.toy.english.wording import English
from metamorph.data.toy.scenes import COLOURS, COUNT_WORDS, SHAPES, is_held_out, render
from metamorph.data.toy.tasks import make_task
from metamorph.data.toy.tokenizer import build_toy_tokenizer
from metamorph.errors import UserError
from metamorph.evaluation.knowledge import Knowledge, knowledge_of
from metamorph.evaluation.puzzles import FRAMES, REQUESTS, VALUES, puzzles
from metamorph.model import LanguageConfig, Llama

PUZZLES = puzzles()
NUMBERS = {word: count for count, word in COUNT_WORDS.items()}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def named(text: str, attribute: str) -> set[str]:
    """The values of an attribute that a request says."""
    table = {"colour": [*COLOURS], "shape": [*SHAPES], "count": [*NUMBERS]}[attribute]
    singular = {word.removesuffix("es") for word in words(text)}
    singular |= {word.removesuffix("s") for word in words(text)} | {*words(text)}
    return singular & {*table}


def test_there_are_many_of_each_kind_and_all_values_are_asked_for():
    assert len(PUZZLES) >= 60 and len({puzzle.task().sample.id for puzzle in PUZZLES}) == len(
        PUZZLES
    )
    assert {puzzle.knowledge for puzzle in PUZZLES} == {*REQUESTS} == {*FRAMES}
    for attribute, values in VALUES.items():
        assert {p.right for p in PUZZLES if p.attribute == attribute} == {*values}


@pytest.mark.parametrize("puzzle", PUZZLES, ids=lambda puzzle: puzzle.subject)
def test_a_puzzle_names_everything_but_what_is_to_be_inferred(puzzle):
    asked, stated, scrambled = map(puzzle.request, ("inferred", "stated", "scrambled"))
    assert puzzle.right not in words(asked)
    for attribute in puzzle.judged:
        value = getattr(puzzle.scene, attribute)
        value = COUNT_WORDS[value] if attribute == "count" else value
        assert named(stated, attribute) == {value}
        if attribute != puzzle.attribute:
            assert value in named(asked, attribute)
    assert sorted(words(scrambled)) == sorted(words(asked)) and scrambled != asked.lower()
    assert puzzle.request("scrambled") == scrambled
    if puzzle.knowledge == "arithmetic" and "half" not in puzzle.subject:
        first, how, second = puzzle.subject.replace("ten", "10").split()
        a, b = (NUMBERS.get(word) or {"six": 6, "seven": 7, "nine": 9, "10": 10}[word]
                for word in (first, second))  # fmt: skip
        assert NUMBERS[puzzle.right] == {"plus": a + b, "minus": a - b, "times": a * b}[how]


@pytest.mark.parametrize("puzzle", PUZZLES[::7], ids=lambda puzzle: puzzle.subject)
def test_the_checker_judges_what_is_asked_and_nothing_else(puzzle):
    task = puzzle.task("stated")
    assert task.sample.turns[0].text == puzzle.request("stated") and task.scene == puzzle.scene
    assert puzzle.score(task.sample.images[0]) == dict.fromkeys(puzzle.judged, True)
    for other in PUZZLES[::9]:
        right = puzzle.score(render(other.scene))
        for name in puzzle.judged:
            assert right[name] == (getattr(other.scene, name) == getattr(puzzle.scene, name))


def test_what_puzzles_ask_for_is_in_training_but_puzzles_are_not():
    assert not any(is_held_out(puzzle.scene) for puzzle in PUZZLES)
    # A question may name a subject, but asks nothing of it: "If a frog hopped onto each figure
    # once, how many landings would there be?"
    said = {
        make_task(0, index, "train", {kind: 1.0}, English()).sample.turns[0].text.lower()
        for kind in ("describe", "draw", "edit", "motion")
        for index in range(150)
    }
    for puzzle in PUZZLES:
        subject = re.compile(rf"\b{puzzle.subject}\b", re.I)
        assert not any(map(subject.search, said)), puzzle.subject


def expecting(tokenizer, token: str) -> Llama:
    """A model that expects `token` after anything."""
    torch.manual_seed(0)
    language = Llama(
        LanguageConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, vocab_size=len(tokenizer),
        )
    )  # fmt: skip
    with torch.no_grad():
        language.model.norm.weight.zero_()  # states are zero: the bias alone decides
    [wanted] = tokenizer.encode(token, add_special_tokens=False)
    head = language.head
    bias = torch.zeros(len(tokenizer))
    bias[wanted] = 3.0
    language.head = lambda states: head(states) + bias
    return language


def test_a_model_that_always_says_red_knows_red_things_and_associates_nothing():
    tokenizer = build_toy_tokenizer()
    colours = [puzzle for puzzle in PUZZLES if puzzle.knowledge == "colour"]
    found = knowledge_of(expecting(tokenizer, " red"), tokenizer, colours)
    assert [fact.known for fact in found] == [puzzle.right == "red" for puzzle in colours]
    others = len(tokenizer) - 1
    for fact in found:
        assert fact.said == "red"
        expected = -math.log1p(others * math.exp(-3.0))
        assert fact.log_probabilities["red"] == pytest.approx(expected, abs=1e-5)
        rises = [fact.log_probabilities[c] - fact.usual[c] for c in COLOURS]
        assert rises == pytest.approx([0.0] * 6, abs=1e-5)


def test_what_rises_above_the_usual_is_associated():
    [grass] = [puzzle for puzzle in PUZZLES if puzzle.subject == "grass"]
    said = dict.fromkeys(COLOURS, -5.0) | {"red": -1.0, "green": -2.0}
    fact = Knowledge(grass, said, dict.fromkeys(COLOURS, -5.0) | {"red": -0.9, "green": -4.0})
    assert (fact.said, fact.known) == ("red", False)
    assert (fact.associated, fact.is_associated) == ("green", True)


def test_values_that_begin_alike_cannot_be_told_apart():
    class Letters:
        def encode(self, text, **options):
            return [ord(letter) for letter in text]

    with pytest.raises(UserError, match="red, green, blue, .* begin with the same token"):
        knowledge_of(expecting(build_toy_tokenizer(), " red"), Letters(), PUZZLES[:1])
