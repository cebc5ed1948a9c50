"""Settings that are changed while one talks."""

import pytest

from metamorph.errors import UserError
from metamorph.generation.flat_settings import flat
from metamorph.generation.settings import AnswerSettings, DrawingSettings, Sampling
from metamorph.terminal.keys import KEYS, setting_lines, with_value


def changed(*pairs: tuple[str, str]) -> AnswerSettings:
    settings = AnswerSettings()
    for key, value in pairs:
        settings = with_value(settings, key, value)
    return settings


def test_values_reach_their_places():
    assert changed(("temperature", "0.5"), ("top-p", "0.9"), ("top_k", "3")).sampling == Sampling(
        temperature=0.5, top_p=0.9, top_k=3
    )
    assert changed(("guidance", "2"), ("drawing_steps", "9")).drawing == DrawingSettings(9, 2.0)
    assert changed(("max_images", "0"), ("max_new_tokens", "5")) == AnswerSettings(5, max_images=0)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_can_be_set_and_set_back(key):
    settings = changed((key, "1"))
    assert flat(settings)[key] == 1
    assert with_value(settings, key, "default") == AnswerSettings()
    assert f"{key} = 1" in "\n".join(setting_lines(settings))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("temprature", "1", "no setting 'temprature', the nearest is 'temperature'"),
        ("topp", "1", "the nearest is 'top_p'"),
        ("temperature", "warm", "/set temperature: expected a number, at least 0, got 'warm'"),
        ("temperature", "nan", "got nan"),
        ("top_p", "0", "/set top_p: expected more than 0"),
        ("top_k", "1.5", "/set top_k: expected a whole number, at least 1, got '1.5'"),
        ("top_k", "9" * 5000, "/set top_k: expected a whole number"),
        ("seed", "-1", "/set seed: expected a whole number, from 0"),
        ("guidance", "-1", "/set guidance: expected a number, at least 0, got -1"),
        ("drawing_steps", "0", "/set drawing_steps: expected a whole number, from 1 to 1000"),
    ],
)
def test_what_cannot_be_set_is_said(key, value, expected):
    with pytest.raises(UserError, match=expected):
        with_value(AnswerSettings(), key, value)
