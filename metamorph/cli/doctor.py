"""metamorph doctor: versions, devices and usable backends."""

import argparse

NAME = "doctor"
SUMMARY = "show versions, devices and usable backends"
DESCRIPTION = "Shows what this machine can use."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(arguments: argparse.Namespace) -> None:
    from metamorph.doctor import main as doctor

    doctor()
