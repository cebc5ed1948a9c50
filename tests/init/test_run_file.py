"""metamorph init: a file that train accepts, with a reason for each key, or one sentence."""

import io
import json
import os
import pty
import sys

import pytest

from metamorph.cli.command import main
from metamorph.config.reading import load_config
from metamorph.errors import UserError
from metamorph.init.choices import Choice, commented, config_of
from metamorph.init.questions import Questions
from metamorph.init.run_file import nodes_of
from tests.data.data_files import turns, write_lines

PARTS = ("--language", "models/llama", "--vision", "models/siglip")
ALIGN = ("my-run", "--stage", "align", "--data", "data.jsonl", *PARTS)


@pytest.fixture(autouse=True)
def piped(monkeypatch):
    """Nobody sits at the terminal."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))


def init(*arguments: object) -> int:
    return main(["init", *map(str, arguments)])


def fails(capsys, *arguments: object) -> str:
    assert init(*arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("metamorph: ")
    return error


def test_what_is_written_can_be_trained(here, capsys):
    assert init(*ALIGN) == 0
    printed = capsys.readouterr().out
    assert "wrote my-run.yaml" in printed and "metamorph train my-run.yaml --dry-run" in printed
    config = load_config("my-run.yaml")
    assert (config.stage, config.output, config.data.image_root) == (
        "align", "runs/my-run", "pictures"
    )  # fmt: skip
    assert config.data.row_length == 1024 and config.training.precision == "fp32"
    assert "# arithmetic of a step: float32 throughout" in (here / "my-run.yaml").read_text()
    text = (here / "my-run.yaml").read_text()
    keys = [line for line in text.splitlines() if ": " in line and "#" not in line]
    for line in keys:  # under its reason
        assert text.split("\n" + line)[0].splitlines()[-1].lstrip().startswith("# "), line
    assert main(["train", "my-run.yaml"]) == 0
    capsys.readouterr()
    assert init("second", "--data", "data.jsonl", "--model", "runs/my-run/model") == 0
    second = load_config("second.yaml")
    assert second.stage == "instruct" and second.model.folder == "runs/my-run/model"


def test_gpus_that_are_not_here_are_planned_for(here, capsys):
    assert init(*ALIGN, "--gpus", 4, "--memory", 80) == 0
    assert "torchrun --nproc-per-node 4 -m metamorph train my-run.yaml" in capsys.readouterr().out
    config = load_config("my-run.yaml")
    assert config.parallel.gpus == 4 and config.training.rows_per_step % 4 == 0
    assert config.training.precision == "bf16"
    assert config.training.activation_checkpointing == "none"
    assert init(*ALIGN, "--gpus", 16, "--overwrite") == 0
    assert "--nnodes 2 --rdzv-backend c10d" in capsys.readouterr().out


def test_processes_are_as_many_as_the_gpus_that_were_planned_for(here, capsys):
    assert init(*ALIGN, "--gpus", 12) == 0
    [start] = [line for line in capsys.readouterr().out.splitlines() if "torchrun" in line]
    assert "--nnodes 2 " in start and "--nproc-per-node 6 " in start
    assert load_config("my-run.yaml").training.rows_per_step % 12 == 0
    assert [nodes_of(gpus) for gpus in (1, 8, 9, 12, 13, 16, 20)] == [1, 1, 3, 2, 13, 2, 4]


def test_commands_can_be_typed_whatever_the_name(here, capsys):
    assert init("my run", *ALIGN[1:]) == 0
    assert "  metamorph train 'my run.yaml' --dry-run\n" in capsys.readouterr().out
    assert "#   metamorph train 'my run.yaml' --dry-run\n" in (here / "my run.yaml").read_text()


def test_memory_chooses_recomputation_and_says_what_would_do(here, capsys):
    """1B by its public sizes: neither weights nor tokenizer are here."""
    parts = ("--language", "x/Llama-3.2-1B-Instruct", "--vision", "x/siglip-so400m-patch14-384")
    asked = ("big", "--data", "data.jsonl", *parts)
    error = fails(capsys, *asked, "--gpus", 1, "--memory", 16)
    assert "GiB of each GPU by formula" in error and "--gpus " in error
    small = fails(capsys, *ALIGN, "--gpus", 1, "--memory", 0.0001)
    assert "a step needs 0.0" in small and "needs 0.0 GiB" not in small
    assert init(*asked, "--gpus", 8, "--memory", 10) == 0
    config = load_config("big.yaml")
    assert config.training.activation_checkpointing == "full"
    assert config.data.row_length == 4096


def test_decoders_of_both_kinds(here, capsys):
    asked = ("pixels", "--stage", "decoder", "--data", "pictures", "--vision", "models/siglip")
    assert init(*asked) == 0
    config = load_config("pixels.yaml")
    assert config.decoder.kind == "rae" and config.data.source == "pictures"
    assert "--language: stage decoder does not use it" in fails(
        capsys, *asked, *PARTS[:2], "--overwrite"
    )
    assert "--base: nowhere does not exist" in fails(
        capsys, *asked, "--base", "nowhere", "--overwrite"
    )


def test_generated_scenes_have_steps(here):
    assert init("toy", "--data", "toy_scenes", *PARTS) == 0
    config = load_config("toy.yaml")
    assert config.training.steps == 1000 and config.training.epochs is None


def test_more_samples_hold_some_out(here):
    line = {"image": "a.png", "conversations": turns("<image>What is it?", "A circle.")}
    write_lines(here / "many.jsonl", *[line] * 300)
    assert init("many", "--data", "many.jsonl", *PARTS) == 0
    assert load_config("many.yaml").data.validation == 0.02
    assert "passes over the data, 294 samples each" in (here / "many.yaml").read_text()


def test_a_file_is_kept_unless_told(here, capsys):
    (here / "my-run.yaml").write_text("mine")
    assert "my-run.yaml exists; --overwrite replaces it" in fails(capsys, *ALIGN)
    assert (here / "my-run.yaml").read_text() == "mine"
    assert init(*ALIGN, "--overwrite") == 0
    assert load_config("my-run.yaml").stage == "align"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x",), "--data: it is needed where nobody can be asked"),
        (("x", "--data", "data.jsonl"), "--language: it is needed"),
        (("x", "--data", "gone.jsonl", *PARTS), "gone.jsonl does not exist"),
        (("x", "--data", "data.jsonl", *PARTS, "--model", "m"), "--model: it has a language model"),
        (("x", "--data", "data.jsonl", *PARTS, "--base", "m"), "--base: stage instruct does not"),
        (("x", "--data", "data.jsonl", "--language", "nope", *PARTS[2:]), "--language: nope does"),
        (("", *ALIGN[1:]), "'' is no name of a run file"),
        (("/", *ALIGN[1:]), "'/' is no name of a run file"),
        (("..", *ALIGN[1:]), "'..' is no name of a run file"),
        (("a\nb", *ALIGN[1:]), "'a\\nb' is no name of a run file"),
        (("x", "--data", "", *PARTS), "--data: it is empty"),
        (("x", "--data", "data.jsonl", "--language", "", *PARTS[2:]), "--language: it is empty"),
        (("no/x", "--data", "data.jsonl", *PARTS), "no does not exist"),
        ((*ALIGN, "--gpus", "0", "--memory", "9"), "--memory: it is that of a GPU"),
        ((*ALIGN, "--memory", "9"), "--memory: it is that of a GPU"),  # and none is here
        (
            ("x", "--data", "data.jsonl", "--language", "models/siglip", *PARTS[2:]),
            "--language: models/si",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence_and_writes_nothing(arguments, message, here, capsys):
    assert message in fails(capsys, *arguments)
    assert not list(here.glob("*.yaml"))


def test_broken_pictures_are_told_before_anything_is_written(here, capsys):
    lines = [{"image": "a.png", "conversations": turns("<image>What?", "It.")}]
    lines += [{"image": "bad.png", "conversations": turns("<image>What?", "It.")}] * 3
    write_lines(here / "data.jsonl", *lines)
    (here / "pictures/bad.png").write_text("no picture")
    assert "3 of 4 samples cannot be used, most by corrupt image" in fails(capsys, *ALIGN)


def test_a_person_is_asked_until_the_answer_can_be_used(monkeypatch, capsys):
    typed = iter(["", "no", "7"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))

    def convert(text: str) -> int:
        if not text.isdigit():
            raise UserError(f"expected a number, got {text}")
        return int(text)

    assert Questions(True).answer("--n", None, "How many", convert) == 7
    assert "expected a number, got no" in capsys.readouterr().out
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr("builtins.input", lambda prompt: "~/data")
    assert Questions(True).answer("--data", None, "Which", str) == "/home/me/data"
    assert Questions(True).answer("--n", "3", "How many", convert) == 3
    assert Questions(False).answer("--n", None, "How many", convert, "5") == 5


def test_in_a_terminal_everything_is_asked(here, monkeypatch, capsys):
    leader, follower = pty.openpty()
    answers = ["instruct", "gone.jsonl", "data.jsonl", "", "models/llama", "models/siglip", "0"]
    os.write(leader, "".join(f"{answer}\n" for answer in answers).encode())
    with open(follower) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        assert init("asked") == 0
    os.close(leader)
    printed = capsys.readouterr().out
    assert "Your samples" in printed and "gone.jsonl does not exist" in printed
    assert load_config("asked.yaml").model.language == "models/llama"


def test_a_file_that_would_say_something_else_is_not_written(here, monkeypatch):
    monkeypatch.setattr("metamorph.init.run_file.load_config", lambda path: "another")
    with pytest.raises(RuntimeError, match="does not say what was meant"):
        init(*ALIGN)
    assert not list(here.glob("*.yaml"))


def test_values_stand_in_yaml_as_they_are(tmp_path):
    choices = [
        Choice("stage", "instruct", "what"),
        Choice("output", "runs/a: b", "a name that YAML would read otherwise"),
        Choice("data.fields", {"caption": "TE#XT"}, "names\nthat come from \x1b files"),
        Choice("training.learning_rate", 1.7e-05, "a number that YAML 1.1 takes for text"),
    ]
    path = tmp_path / "a.yaml"
    path.write_text(commented(choices, ["head"]))
    assert load_config(path) == config_of(choices)
    assert "\x1b" not in path.read_text() and json.dumps(path.read_text()).count("# ") == 5
