"""metamorph completion: what a shell needs for Tab to complete commands of metamorph."""

import argparse
import sys

NAME = "completion"
SUMMARY = "print a script by which a shell completes commands"
DESCRIPTION = """\
Prints a script for bash, zsh or fish. With it, Tab completes verbs, options, keys of a run with
their values, and run files, those that are shipped too:

  source <(metamorph completion bash)      # in ~/.bashrc
  source <(metamorph completion zsh)       # in ~/.zshrc, after compinit
  metamorph completion fish | source       # in ~/.config/fish/config.fish"""
SHELLS = ("bash", "zsh", "fish")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="which one")
    parser.add_argument("--candidates", action="store_true", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> None:
    if arguments.candidates:  # the script asks: words follow each other with a NUL behind each
        from metamorph.completion.candidates import candidates

        words = sys.stdin.read().split("\0")[:-1]
        print("".join(f"{each}\n" for each in candidates(arguments.parser, words)), end="")
    else:
        from metamorph.completion.scripts import script

        print(script(arguments.shell), end="")
