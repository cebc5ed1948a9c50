"""metamorph doctor: versions, devices and usable backends."""

import argparse

NAME = "doctor"
SUMMARY = "show versions, devices and usable backends"
DESCRIPTION = """\
Shows what this machine can use.

  metamorph doctor
  metamorph doctor --json    # the same facts for a program: docs/machines.md"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print them as JSON")


def run(arguments: argparse.Namespace) -> None:
    from metamorph.doctor import main as doctor

    doctor(as_json=arguments.json)
