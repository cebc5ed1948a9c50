"""The words, pictures and settings of lmms-eval's tasks."""

import pytest
import torch
from PIL import Image

from metamorph.errors import UserError
from metamorph.generation.messages import Drawing
from metamorph.generation.settings import AnswerSettings, Sampling
from metamorph.integrations.lmms_eval.requests import message, parts
from metamorph.integrations.lmms_eval.settings import answer_settings

ONE, TWO = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
DRAWN = Drawing(torch.zeros(4, 6))


def read(**asked) -> AnswerSettings:
    return answer_settings(asked, max_new_tokens=100, seed=7)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "[GEN_PROMPT] Mark it. [/GEN_PROMPT]\n[QUESTION] What\nis it? [/QUESTION]",
            ("Mark it.", "What\nis it?"),
        ),
        (
            "[GEN_PROMPT]For: {question}[/GEN_PROMPT][QUESTION]Why {x}?[/QUESTION]",
            ("For: Why {x}?", "Why {x}?"),
        ),
        ("What is {it}?", ("Sketch What is {it}?", "What is {it}?")),
        (
            "[GEN_PROMPT]Mark it.[/GEN_PROMPT] What?",  # half of the form is words like others
            (
                "Sketch [GEN_PROMPT]Mark it.[/GEN_PROMPT] What?",
                "[GEN_PROMPT]Mark it.[/GEN_PROMPT] What?",
            ),
        ),
    ],
)
def test_the_request_for_a_picture_and_the_question(words, expected):
    assert parts(words, "Sketch {question}") == expected


@pytest.mark.parametrize(
    ("words", "pictures", "drawing", "expected", "fits"),
    [
        ("What?", [], None, ("What?",), True),
        ("What?", [ONE, TWO], None, (ONE, TWO, "What?"), True),
        ("Is <image> as <image>?", [ONE, TWO], None, ("Is ", ONE, " as ", TWO, "?"), True),
        ("Is <image>?", [ONE, TWO], None, (ONE, TWO, "Is <image>?"), False),
        ("Is <image>?", [], None, ("Is <image>?",), False),
        ("What?", [ONE], DRAWN, (ONE, DRAWN, "What?"), True),
        ("What?", [], DRAWN, (DRAWN, "What?"), True),
        ("Is <image>?", [ONE], DRAWN, ("Is ", ONE, DRAWN, "?"), True),
        ("<image> or <image>?", [ONE, TWO], DRAWN, (ONE, " or ", TWO, DRAWN, "?"), True),
        ("Is <image> as <image>?", [ONE], DRAWN, ("Is ", ONE, " as ", DRAWN, "?"), True),
        ("<image><image><image>", [ONE], DRAWN, (ONE, DRAWN, "<image><image><image>"), False),
    ],
)
def test_pictures_take_their_places(words, pictures, drawing, expected, fits):
    turn, found = message(words, pictures, drawing)
    assert (turn.role, turn.parts, found) == ("user", expected, fits)


def test_without_a_word_of_the_task_the_arguments_hold():
    expected = AnswerSettings(100, Sampling(seed=7), max_images=0, drawing=None)
    assert read() == expected
    assert read(until=None, temperature=None, max_new_tokens=None) == expected


@pytest.mark.parametrize(
    ("asked", "temperature", "top_p"),
    [
        ({"do_sample": False, "temperature": 0.2, "top_p": 0, "top_k": 1}, 0, None),
        ({"temperature": 0.0, "top_p": 1.0}, 0, None),
        ({"do_sample": True, "temperature": 0.0, "top_p": 0.9}, 0, 0.9),
        ({"do_sample": True, "temperature": 0.7, "top_p": 0.9}, 0.7, 0.9),
        ({"do_sample": True}, 1, None),
        ({"temperature": 0.5}, 0.5, None),
    ],
)
def test_what_is_sampled(asked, temperature, top_p):
    sampling = read(**asked).sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (temperature, top_p, 7)


def test_other_words_of_tasks():
    found = read(until="\n", max_new_tokens=5, repetition_penalty=1.2, seed=3, num_beams=1)
    assert (found.stop, found.max_new_tokens) == (("\n",), 5)
    assert found.sampling == Sampling(repetition_penalty=1.2, seed=3)
    assert read(until=["a", "b"]).stop == ("a", "b")
    again = answer_settings({"seed": 3}, max_new_tokens=100, seed=7, repeat=2)
    assert again.sampling.seed == 5


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"stop_sequences": ["."]}, "unknown 'stop_sequences', expected some of max_new_tokens"),
        ({"num_beams": 4}, "num_beams: expected 1, for no beams, got 4"),
        ({"until": 3}, "until: expected text or texts, got 3"),
        ({"until": [""]}, "stop: expected strings that are not empty"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected a whole number, at least 1, got 0"),
        ({"temperature": "hot"}, "temperature: expected a number"),
        ({"do_sample": "no"}, "do_sample: expected true or false, got 'no'"),
        ({"do_sample": True, "top_p": 0}, "top_p: expected more than 0"),
    ],
)
def test_what_cannot_be_followed_is_refused(asked, sentence):
    with pytest.raises(UserError, match=sentence):
        read(**asked)
