"""Settings that are changed while one talks."""

import pytest

from metamorph.errors import UserError
from metamorph.generation.flat_settings import flat
from metamorph.generation.settings import AnswerSettings, DrawingSettings, Sampling
from metamorph.terminal.keys import KEYS, setting_lines, with_value

OTHER = {  # keys that 1 is no value of
    "sampler": ("unipc", "unipc"),
    "guidance_interval": ("0.25,0.5", [0.25, 0.5]),
}


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
    more = ("guidance_rescale", "0.7"), ("guidance-interval", "0.1,0.6"), ("sampler", "euler")
    assert changed(*more).drawing == DrawingSettings(
        guidance_rescale=0.7, guidance_interval=(0.1, 0.6), scheduler="euler"
    )
    assert changed(("max_images", "0"), ("max_new_tokens", "5")) == AnswerSettings(5, max_images=0)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_can_be_set_and_set_back(key):
    text, value = OTHER.get(key, ("1", 1))
    settings = changed((key, text))
    assert flat(settings)[key] == value
    assert with_value(settings, key, "default") == AnswerSettings()
    assert f"{key} = {text}" in "\n".join(setting_lines(settings))


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
        ("sampler", "dpm", "/set sampler: expected one of dpm.*, got 'dpm'"),
        ("guidance_interval", "half", "/set guidance_interval: expected two numbers, from 0 to 1"),
        ("guidance_interval", "0.1", "/set guidance_interval: expected two numbers, from 0 to 1"),
        ("guidance_interval", "0.6,0.1", "/set guidance_interval: expected the smaller number"),
    ],
)
def test_what_cannot_be_set_is_said(key, value, expected):
    with pytest.raises(UserError, match=expected):
        with_value(AnswerSettings(), key, value)
