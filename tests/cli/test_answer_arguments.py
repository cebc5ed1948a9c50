"""The options that verbs which talk to a model share."""

import argparse

import pytest

from metamorph.cli.answer_arguments import (
    add_answer_arguments,
    add_model_arguments,
    add_system_argument,
    settings_of,
)
from metamorph.cli.command import main
from metamorph.config.keys import MAX_SEED
from metamorph.generation.settings import AnswerSettings, DrawingSettings, Sampling


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_model_arguments(parser)
    add_answer_arguments(parser)
    add_system_argument(parser)
    return parser


def test_defaults_are_those_of_the_settings(parser):
    arguments = parser.parse_args([])
    assert settings_of(arguments) == AnswerSettings()
    assert arguments.system == "" and arguments.decoder is None


def test_every_option_reaches_the_settings(parser):
    text = ["--temperature", "0.5", "--top-k", "7", "--top-p", "1", "--min-p", "0.1"]
    text += ["--repetition-penalty", "1.2", "--seed", str(MAX_SEED)]
    rest = ["--max-new-tokens", "9", "--max-images", "0"]
    rest += ["--stop", "a", "--stop", "b", "--drawing-steps", "3", "--sampler", "dpm++"]
    rest += ["--guidance", "0", "--guidance-rescale", "0.7", "--guidance-interval", "0", "0.5"]
    assert settings_of(parser.parse_args([*text, *rest])) == AnswerSettings(
        max_new_tokens=9,
        max_images=0,
        stop=("a", "b"),
        sampling=Sampling(0.5, 7, 1.0, 0.1, 1.2, MAX_SEED),
        drawing=DrawingSettings(3, 0.0, 0.7, (0.0, 0.5), "dpm++"),
    )


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--top-p", "0", "expected a number, above 0, at most 1, got '0'"),
        ("--top-p", "1.01", "above 0, at most 1"),
        ("--top-p", "nan", "got 'nan'"),
        ("--min-p", "-0.1", "expected a number, at least 0, at most 1, got '-0.1'"),
        ("--min-p", "2", "at most 1"),
        ("--repetition-penalty", "0", "expected a number, above 0, got '0'"),
        ("--repetition-penalty", "inf", "got 'inf'"),
        ("--top-k", "0", "expected a whole number, at least 1"),
        ("--max-images", "-1", "expected a whole number, at least 0"),
        ("--drawing-steps", "1001", "expected a whole number, from 1 to 1000"),
        ("--sampler", "flow_match_euler", "invalid choice: 'flow_match_euler'"),
        ("--guidance-rescale", "1.5", "at least 0, at most 1, got '1.5'"),
        ("--guidance-interval", "0.5", "expected 2 arguments"),
        ("--decoder-attention", "sdpa", "invalid choice: 'sdpa'"),
        ("--decoder-precision", "fp16", "invalid choice: 'fp16'"),
        ("--precision", "fp4", "invalid choice: 'fp4'"),
    ],
)
def test_values_beyond_the_limits_are_refused(parser, option, value, expected):
    with pytest.raises(argparse.ArgumentError, match=expected):
        parser.parse_args([f"{option}={value}"])


def test_a_chat_without_temperature_samples_nothing(capsys):
    assert main(["chat", "--top-p", "0.5"]) == 2
    assert "--top-p: temperature 0 takes the likeliest token anyway" in capsys.readouterr().err
