"""The command line: one file a verb, each parses, calls and prints, nothing more."""

from metamorph.cli.command import main

__all__ = ["main"]
