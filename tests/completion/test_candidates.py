"""What Tab offers: verbs, options, keys of a run with their values, run files; else nothing."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metamorph.cli.command import VERBS, build_parser
from metamorph.completion.candidates import candidates
from metamorph.config import RunConfig
from metamorph.config.reading import iter_fields

PARSER = build_parser()


def offered(line: str) -> list[str]:
    """For a command line up to the cursor, without the program's name."""
    return candidates(PARSER, line.split(" "))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tra", ["train"]),
        ("--ver", ["--version"]),
        ("train my.yaml --training.st", ["--training.steps"]),
        ("train --training.precision ", ["fp32", "bf16", "fp8"]),
        ("train my.yaml --training.precision b", ["bf16"]),
        ("train my.yaml --training.precision=b", ["--training.precision=bf16"]),
        ("train --gpu-type h", ["h100", "h200"]),
        ("train my.yaml --monitor.wandb ", ["true", "false"]),
        ("train configs/smollm2/con", ["configs/smollm2/control.yaml"]),
        ("train --dry-run configs/smollm2/con", ["configs/smollm2/control.yaml"]),
        ("train --seed 3 configs/smollm2/con", ["configs/smollm2/control.yaml"]),
        ("train --seed=3 configs/smollm2/con", ["configs/smollm2/control.yaml"]),
        ("validate-data configs/smollm2/con", ["configs/smollm2/control.yaml"]),
        ("generate hi --guidance-interval 0 0.5 --sampler d", ["dpm++", "ddim"]),
        ("export runs/model out --format ", ["hf", "official"]),
        ("completion ", ["bash", "zsh", "fish"]),
        ("completion bash --cand", []),  # what the scripts alone say
        # Paths, numbers and free text: the shell's own files.
        ("generate hi --model ru", []),
        ("train my.yaml --training.steps ", []),
        ("train my.yaml ", []),
        ("generate ", []),
        ("no-such-verb --", []),
        ("train --no-such-option co", ["configs/"]),
    ],
)
def test_what_is_offered(line, expected):
    found = offered(line)
    if expected == ["configs/"]:
        assert found and all(name.startswith("configs/") for name in found)
    else:
        assert found == expected


def test_bash_makes_three_words_of_a_key_and_its_value():
    words = ["train", "my.yaml", "--training.precision", "="]
    assert candidates(PARSER, words) == ["fp32", "bf16", "fp8"]
    assert candidates(PARSER, [*words, "b"]) == ["bf16"]


def test_run_files_beside_what_was_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "runs/config.yaml").touch()
    assert "mine.yaml" in offered("train ") and "configs/toy/align.yaml" in offered("train ")
    assert offered("train mi") == ["mine.yaml"]
    assert offered("train runs/") == ["runs/config.yaml"]


def test_every_verb_and_every_key_is_offered():
    assert set(VERBS) <= set(offered(""))
    keys = {f"--{key}" for key, *_ in iter_fields(RunConfig)}
    assert keys <= set(offered("train --"))


@given(st.lists(st.sampled_from(["train", "generate", "--resume", "=", "--seed=1", "--", "-", ""])))
def test_no_line_is_too_strange(words):
    for found in candidates(PARSER, words):
        assert found.startswith(words[-1] if words and words[-1] != "=" else "")


def test_a_key_pressed_waits_for_no_torch():
    program = "import sys; import metamorph.completion.candidates; print('torch' in sys.modules)"
    asked = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert asked.stdout == "False\n"
