"""The scripts in their shells: bash wherever tests run, zsh and fish where they are installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from metamorph.cli.command import main
from metamorph.cli.completion import SHELLS

ASK = {  # shell: completes the command line of its arguments and prints what is offered
    "bash": """
        source <(metamorph completion bash)
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        _metamorph
        printf '%s\\n' "${COMPREPLY[@]}"
    """,
    # Completion proper needs a terminal: what the script calls stands in for it.
    "zsh": """
        compdef() { }
        compadd() { shift; print -l -- "$@" }
        _files() { print FILES }
        source <(metamorph completion zsh)
        words=("$@") CURRENT=$#
        _metamorph
    """,
    "fish": """
        metamorph completion fish | source
        complete --do-complete (string join ' ' -- $argv)
    """,
}


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """A function: what a shell offers for words, the last of them at the cursor."""
    program = tmp_path / "bin/metamorph"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m metamorph "$@"\n')
    program.chmod(0o755)
    here = Path(__file__).parents[2]
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{here}{os.pathsep}{here / 'kernels'}")
    monkeypatch.setenv("HOME", str(tmp_path))

    def ask(shell: str, *words: str) -> list[str]:
        given = ["metamorph", *words]
        command = {
            "bash": ["bash", "--norc", "-c", ASK["bash"], "bash", *given],
            "zsh": ["zsh", "-f", "-c", ASK["zsh"], "zsh", *given],
            "fish": ["fish", "--no-config", "--command", ASK["fish"], *given],
        }[shell]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert not done.stderr
        return done.stdout.split()

    return ask


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_offers_what_the_program_says(shell, ask):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert ask(shell, "tra") == ["train"]
    assert set(ask(shell, "train", "a.yaml", "--training.s")) == {
        "--training.steps", "--training.schedule",
    }  # fmt: skip
    assert set(ask(shell, "train", "--training.precision", "")) == {"fp32", "bf16", "fp8"}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_says_how_it_is_used(shell, capsys):
    assert main(["completion", shell]) == 0
    printed = capsys.readouterr().out
    assert f"metamorph completion {shell}" in printed.split("\n_metamorph")[0]


def test_a_shell_that_is_not_known_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["completion", "tcsh"])
    assert stop.value.code == 2 and "'bash', 'zsh', 'fish'" in capsys.readouterr().err
